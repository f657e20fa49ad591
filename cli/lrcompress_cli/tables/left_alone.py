"""A table of modules that no plan changes: kinds, share of the parameters, and reasons."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table

from lrcompress.profiling.left_alone import Item, left_alone_groups
from lrcompress_cli.tables.names import cell
from lrcompress_cli.tables.numbers import count, share

MOST = 5  # kinds; the report lists all


class LeftAloneTable:
    """A rich table. items: from a report or a profile. whole: parameters of the model."""

    def __init__(self, items: Iterable[Item], whole: int) -> None:
        self._groups, self._whole = left_alone_groups(items), whole

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        groups, whole = self._groups, self._whole
        table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
        table.add_column("left alone", overflow="fold")
        for heading in ("parameters", "of all"):
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("", overflow="fold", style="dim")
        for group in groups[:MOST]:
            row = group.label, count(group.params), share(group.params, whole)
            table.add_row(*map(cell, row), cell(group.reason))
        rest = groups[MOST:]
        if rest:
            params = sum(group.params for group in rest)
            table.add_row(f"{len(rest)} more kinds", count(params), share(params, whole), "")
        params = sum(group.params for group in groups)
        if len(groups) > 1:
            table.add_row("together", count(params), share(params, whole), "")
        yield table
