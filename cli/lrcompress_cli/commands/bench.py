"""`lrcompress bench`: dense against compressed, in one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lrcompress_cli.options.exporting import provider_option
from lrcompress_cli.options.gather import FILE, NEW_FILE
from lrcompress_cli.options.lists import Numbers
from lrcompress_cli.options.source import DataChoice, ModelChoice, data_options, model_options
from lrcompress_cli.terminal import Outcome, Terminal, reporting

if TYPE_CHECKING:
    from lrcompress.export.bench_report import BenchReport
    from lrcompress.progress import Progress


@click.command()
@model_options
@click.argument("onnx", type=FILE, nargs=-1, required=True)
@data_options
@click.option(
    "--batch",
    "batches",
    type=Numbers(),
    metavar="LIST",
    help="Batch sizes to time, separated by commas; by default 1,8, or what the graphs take.",
)
@click.option(
    "--length",
    "lengths",
    type=Numbers(),
    metavar="LIST",
    help="Sequence lengths to time, where an input has a free length; separated by commas; by "
    "default 128, or the longest that the graphs take.",
)
@click.option(
    "--runs",
    type=click.IntRange(min=1),
    metavar="N",
    default=30,
    show_default=True,
    help="Timed runs of each model, batch and length.",
)
@provider_option
@click.option(
    "--threads",
    type=click.IntRange(min=1),
    metavar="N",
    help="Threads of one operator; ONNX Runtime's own choice by default.",
)
@click.option("-o", "--output", type=NEW_FILE, help="Write the JSON object here too.")
@reporting
def command(
    terminal: Terminal,
    *,
    model: ModelChoice,
    onnx: tuple[Path, ...],
    data: DataChoice,
    batches: tuple[int, ...] | None,
    lengths: tuple[int, ...] | None,
    runs: int,
    provider: Literal["cpu", "cuda", "tensorrt"],
    threads: int | None,
    output: Path | None,
) -> Outcome:
    """Time a dense against compressed models.

    MODEL is an ONNX file, or a model that is exported first; every ONNX file is measured
    against it, taking turns.
    """
    from lrcompress.export.bench import BenchSettings, BenchTarget, bench
    from lrcompress.storage import write_json
    from lrcompress_cli.tables.bench import BenchTable

    settings = BenchSettings(batches, lengths, provider, runs, threads=threads)
    with _dense_graph(model, data, terminal.progress) as (dense, fingerprint):
        names = _names([dense, *onnx])
        targets = [BenchTarget(*pair) for pair in zip(names, [dense, *onnx], strict=True)]
        report = bench(targets, settings, progress=terminal.progress)
    if output is not None:
        write_json(output, report.to_json())
    for name, path in zip(names[1:], onnx, strict=True):
        _show_in_report(terminal, report, name, path, fingerprint)
    return Outcome(report.to_json(), [BenchTable(report)])


@contextmanager
def _dense_graph(
    model: ModelChoice, data: DataChoice, progress: Progress
) -> Iterator[tuple[Path, str | None]]:
    """MODEL itself if it is a graph, else an export of it that is gone afterwards; its fingerprint,
    which a graph does not tell."""
    if model.model.endswith(".onnx"):
        yield Path(model.model), None
        return
    from lrcompress.export.onnx import export_onnx
    from lrcompress.fingerprint import model_fingerprint

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "dense.onnx"
        with progress.stage("export of the dense model", 1) as step:
            loaded = model.load()
            fingerprint = model_fingerprint(loaded.module)
            export_onnx(loaded.module, data.example(loaded, seed=0), path)
            step.advance()
        yield path, fingerprint


def _show_in_report(
    terminal: Terminal, report: BenchReport, name: str, path: Path, dense: str | None
) -> None:
    """The report of the run that the file comes from shows its first latency.

    dense: fingerprint of MODEL, which has to be the one that the run was made from.
    """
    from lrcompress.pipeline import record_latency

    if path.name != "model.onnx":
        return
    first = {row.target: row.p50_ms for row in reversed(report.latencies)}
    recorded = record_latency(path.parent, dense, first["dense"], first[name])
    if recorded == "recorded":
        terminal.note(f"{path.parent}: its report now shows the latency")
    elif recorded == "another model":
        terminal.note(
            f"{path.parent}: its report was left alone, as MODEL is not known to be the one that "
            "the run was made from"
        )


def _names(paths: list[Path]) -> list[str]:
    """File names where they differ, whole paths where not."""
    short = ["dense", *(path.name for path in paths[1:])]
    return short if len(set(short)) == len(short) else ["dense", *map(str, paths[1:])]
