"""A summary of an export."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from rich.table import Table
from rich.text import Text

from lrcompress.export.export_onnx import ExportReport, Port
from lrcompress.messages import printable
from lrcompress_cli.tables.names import cell
from lrcompress_cli.tables.numbers import size


def export_table(report: ExportReport) -> Table:
    table = Table(box=None, pad_edge=False, show_header=False, collapse_padding=True)
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    folder = Path(report.path).parent
    for name, bytes_ in report.files.items():
        table.add_row("file", cell(f"{folder / name}  ({size(bytes_)})"))
    table.add_row("format", f"{report.precision}, opset {report.opset}")
    if report.formats:
        counts = Counter(report.formats.values()).most_common()
        table.add_row("weights", ", ".join(f"{count} {name}" for name, count in counts))
    for label, ports in (("inputs", report.inputs), ("outputs", report.outputs)):
        table.add_row(label, Text("\n".join(_port(port) for port in ports)))
    for line in report.axes:
        table.add_row("axes", cell(line))
    nodes = ", ".join(
        f"{count} {printable(name)}" for name, count in list(report.node_counts.items())[:8]
    )
    table.add_row("nodes", f"{sum(report.node_counts.values())}: {nodes} …")
    for note in report.notes:
        table.add_row("note", cell(note))
    return table


def _port(port: Port) -> str:
    return printable(f"{port.name}: {port.dtype} ({', '.join(map(str, port.axes))})")
