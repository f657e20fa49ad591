"""A table of the latency of structures and formats relative to dense, in their fastest form."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lrcompress.planning.latency import LatencyTable, Measurement
from lrcompress_cli.tables.names import cell


class LatencyTableView:
    def __init__(self, table: LatencyTable) -> None:
        self._table = table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        rows = sorted({it.rows for it in self._table.measurements})
        table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
        table.add_column("structure", no_wrap=True)
        table.add_column("format", no_wrap=True)
        for heading in ("blocks", "size", "kept"):
            table.add_column(heading, justify="right", no_wrap=True)
        for count in rows:
            table.add_column(f"{count} rows", justify="right", no_wrap=True)
        best: dict[tuple[object, ...], dict[int, Measurement]] = {}
        for it in self._table.measurements:
            size = f"{it.out_features} x {it.in_features}"
            cells = best.setdefault((it.structure, it.format, it.blocks, size, it.kept), {})
            if it.rows not in cells or it.ratio < cells[it.rows].ratio:
                cells[it.rows] = it
        for (name, kind, blocks, shape, kept), cells in best.items():
            assert isinstance(kept, float)
            table.add_row(
                cell(str(name).replace("_", " ")),
                cell(str(kind)),
                str(blocks) if blocks else "",
                str(shape),
                f"{kept:.0%}",
                *(_cell(cells.get(count)) for count in rows),
            )
        yield Text("latency over dense fp32, in the fastest form")
        yield table


def _cell(it: Measurement | None) -> Text:
    if it is None:
        return Text("")
    form = f" {it.form}" if it.form else ""
    return cell(f"{it.ratio:.2f}{form}", "red" if it.ratio >= 1 else "")
