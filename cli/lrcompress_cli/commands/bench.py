"""`lrcompress bench`: time a dense model and compressed models in one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lrcompress_cli.options.export import provider_option
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
    help="Batch sizes to time, separated by commas; by default 1,8, or what the graphs accept.",
)
@click.option(
    "--length",
    "lengths",
    type=Numbers(),
    metavar="LIST",
    help="Sequence lengths to time, where an input has a free length; separated by commas; by "
    "default 128, or the longest that the graphs accept.",
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
    help="Threads of one operator; ONNX Runtime chooses by default.",
)
@click.option("-o", "--output", type=NEW_FILE, help="Also write the JSON object to this file.")
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

    MODEL is an ONNX file, or a model that is exported first. Every ONNX file is timed against
    it, in alternating runs.
    """
    from lrcompress.atomic import refuse_unwritable
    from lrcompress.export.bench import bench
    from lrcompress.export.bench_report import BenchSettings, BenchTarget
    from lrcompress.formats.files import write_json
    from lrcompress_cli.tables.bench import BenchTable

    if output is not None:
        refuse_unwritable(output)
    settings = BenchSettings(batches, lengths, provider, runs, threads=threads)
    with _dense_graph(model, data, onnx, terminal.progress) as (dense, sources):
        names = _names([dense, *onnx])
        targets = [BenchTarget(*pair) for pair in zip(names, [dense, *onnx], strict=True)]
        report = bench(targets, settings, progress=terminal.progress)
    if output is not None:
        write_json(output, report.to_json())
    for name, path in zip(names[1:], onnx, strict=True):
        _show_in_report(terminal, report, name, path, made_from_it=path in sources)
    return Outcome(report.to_json(), [BenchTable(report)])


@contextmanager
def _dense_graph(
    model: ModelChoice, data: DataChoice, onnx: Sequence[Path], progress: Progress
) -> Iterator[tuple[Path, frozenset[Path]]]:
    """Yield MODEL itself if it is a graph, else a temporary export of it, and the ONNX files of the
    runs that were made from MODEL. The latter are unknown if MODEL is a graph."""
    if model.model.endswith(".onnx"):
        yield Path(model.model), frozenset()
        return
    from lrcompress.export.export_onnx import export_onnx
    from lrcompress.pipeline import is_made_from
    from lrcompress.scratch import scratch_folder

    with scratch_folder() as folder:
        path = folder / "dense.onnx"
        with progress.stage("export of the dense model", 1) as step:
            loaded = model.load()
            made = frozenset(file for file in onnx if is_made_from(file.parent, loaded.module))
            export_onnx(loaded.module, data.example(loaded, seed=0), path)
            step.advance()
        yield path, made


def _show_in_report(
    terminal: Terminal, report: BenchReport, name: str, path: Path, *, made_from_it: bool
) -> None:
    """Write the file's first latency into the report of its run, if the run was made from MODEL."""
    from lrcompress.errors import LrcompressError
    from lrcompress.pipeline import record_latency

    if path.name != "model.onnx":
        return
    first = {row.target: row.p50_ms for row in reversed(report.latencies)}
    dense, compressed = first["dense"], first[name]
    try:
        recorded = record_latency(path.parent, dense, compressed, made_from_it=made_from_it)
    except LrcompressError as error:  # the measurements are still shown
        terminal.note(f"the latency could not be recorded: {error}")
        return
    if recorded == "recorded":
        terminal.note(f"{path.parent}: its report now shows the latency")
    elif recorded == "another model":
        terminal.note(
            f"{path.parent}: its report was not changed, since MODEL is not known to be the "
            "model of the run"
        )


def _names(paths: list[Path]) -> list[str]:
    """Return the file names, or the whole paths if file names are not unique."""
    short = ["dense", *(path.name for path in paths[1:])]
    return short if len(set(short)) == len(short) else ["dense", *map(str, paths[1:])]
