"""A table of passed and failed checks."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from rich.table import Table
from rich.text import Text

from lrcompress_cli.tables.names import cell

MARKS = {True: ("✓", "green"), False: ("✗", "bold red"), None: ("·", "dim")}


class Shown(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def passed(self) -> bool | None: ...
    @property
    def detail(self) -> str: ...


def check_table(checks: Iterable[Shown]) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, collapse_padding=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold", max_width=30)
    table.add_column(overflow="fold", style="dim")
    for check in checks:
        mark, style = MARKS[check.passed]
        table.add_row(Text(mark, style=style), cell(check.name), cell(check.detail))
    return table
