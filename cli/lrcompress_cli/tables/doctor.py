"""A table of a diagnosis: one line for each check, with a remedy."""

from __future__ import annotations

from rich.table import Table
from rich.text import Text

from lrcompress.doctor import DoctorReport
from lrcompress.messages import printable
from lrcompress_cli.tables.names import cell

MARKS = {"ok": ("✓", "green"), "warn": ("!", "yellow"), "fail": ("✗", "bold red")}


def doctor_table(report: DoctorReport) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, collapse_padding=True)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for check in report.checks:
        mark, style = MARKS[check.status]
        detail = cell(check.detail)
        if check.next_step:
            detail.append(f"\n→ {printable(check.next_step)}", style="cyan")
        table.add_row(Text(mark, style=style), check.name, detail)
    return table
