"""A table of the latency, throughput, size and memory of several models."""

from __future__ import annotations

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lrcompress.export.bench_report import BenchReport, Ratio
from lrcompress_cli.tables.names import cell
from lrcompress_cli.tables.numbers import count, milliseconds, size


class BenchTable:
    def __init__(self, report: BenchReport) -> None:
        self._report = report

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        report = self._report
        threads = "all" if report.threads is None else str(report.threads)
        yield Text(
            f"{report.execution_provider} on {report.device}, ONNX Runtime {report.onnxruntime}, "
            f"{threads} threads, {report.runs} runs each, alternating\n"
        )
        yield self._latencies()
        yield Text("")
        yield self._footprints()

    def _latencies(self) -> Table:
        table = _table("model", "batch", "length", "p50", "p90", f"{self._report.row}s/s", "ratio")
        ratios = {(r.target, r.batch, r.length): r for r in self._report.ratios}
        for row in self._report.latencies:
            ratio = ratios.get((row.target, row.batch, row.length))
            table.add_row(
                cell(row.target),
                str(row.batch),
                "-" if row.length is None else str(row.length),
                milliseconds(row.p50_ms),
                milliseconds(row.p90_ms),
                count(row.rows_per_s),
                "" if ratio is None else _interval(ratio),
            )
        return table

    def _footprints(self) -> Table:
        table = _table("model", "file", "peak memory", "on the GPU")
        for row in self._report.footprints:
            resident, device = row.peak_resident_bytes, row.peak_device_bytes
            table.add_row(
                cell(row.target),
                size(row.file_bytes),
                "-" if resident is None else size(resident),
                "-" if device is None else size(device),
            )
        return table


def _interval(ratio: Ratio) -> str:
    return f"{ratio.latency_ratio:.2f} ({ratio.low:.2f}..{ratio.high:.2f})"


def _table(first: str, *others: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
    table.add_column(first, overflow="fold", min_width=10)
    for heading in others:
        table.add_column(heading, justify="right", no_wrap=True)
    return table
