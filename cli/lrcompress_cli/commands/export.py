"""`lrcompress export`: write a model as an ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from lrcompress_cli.options.axes import AxisChoice, axis_options
from lrcompress_cli.options.export import ExportChoice, export_options, provider_option, pt2_option
from lrcompress_cli.options.gather import NEW_FILE
from lrcompress_cli.options.plan import latency_table_option, rows_option
from lrcompress_cli.options.source import DataChoice, ModelChoice, data_options, model_options
from lrcompress_cli.terminal import Outcome, Terminal, reporting


@click.command()
@model_options
@data_options
@export_options
@axis_options
@provider_option
@rows_option
@latency_table_option
@pt2_option
@click.option(
    "-o",
    "--output",
    type=NEW_FILE,
    help="File to write; by default model-PRECISION.onnx in MODEL's folder.",
)
@reporting
def command(
    terminal: Terminal,
    *,
    model: ModelChoice,
    data: DataChoice,
    exporting: ExportChoice,
    axes: AxisChoice,
    provider: Literal["cpu", "cuda", "tensorrt"],
    rows: int,
    latency_table: Path | None,
    pt2: bool,
    output: Path | None,
) -> Outcome:
    """Write a model as an ONNX graph.

    MODEL is the run folder of a `compress`, or any model that lrcompress reads. A dense model gives
    the graph to compare with.
    """
    path = output or _default(model.model, exporting.precision)

    from lrcompress.export.export_onnx import export_onnx
    from lrcompress.export.pt2 import save_pt2
    from lrcompress.json_dataclasses import to_json
    from lrcompress.pipeline import budgets_of_run, export_within
    from lrcompress_cli.tables.export import export_table

    loaded = model.load()
    batch = data.example(loaded, seed=0)
    with terminal.progress.stage("export", 1 + pt2) as step:
        asked = exporting.options(provider, rows, latency_table, axes.request())
        options = export_within(asked, budgets_of_run(Path(model.model)))
        report = export_onnx(loaded.module, batch, path, options)
        step.advance()
        if pt2:
            save_pt2(loaded.module, batch, path.with_suffix(".pt2"))
            step.advance()
    record = {**to_json(report), "pt2": str(path.with_suffix(".pt2")) if pt2 else None}
    return Outcome(record, [export_table(report)])


def _default(model: str, precision: str) -> Path:
    from lrcompress.errors import ModelError
    from lrcompress.paths import expanded

    folder = expanded(model, ModelError)
    if not folder.is_dir():
        raise click.UsageError("name the file: -o model.onnx", click.get_current_context())
    return folder / f"model-{precision}.onnx"
