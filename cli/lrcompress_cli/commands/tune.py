"""`lrcompress tune`: train the weights of a finished run, sizes unchanged."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import click

from lrcompress_cli.options.axes import AxisChoice, axis_options
from lrcompress_cli.options.export import provider_option, to_onnx_option
from lrcompress_cli.options.gather import FOLDER
from lrcompress_cli.options.run import RunChoice, running_options
from lrcompress_cli.options.source import (
    DataChoice,
    ModelChoice,
    data_options,
    teacher_options,
)
from lrcompress_cli.options.tune import TuneChoice, tuning_options
from lrcompress_cli.run_outcome import accept_doubts_option, run_outcome
from lrcompress_cli.terminal import Outcome, Terminal, reporting


@click.command()
@click.argument("folder", type=FOLDER)
@teacher_options
@data_options
@tuning_options
@axis_options
@to_onnx_option
@provider_option
@accept_doubts_option
@running_options
@reporting
def command(
    terminal: Terminal,
    *,
    folder: Path,
    teacher: ModelChoice,
    data: DataChoice,
    tuning: TuneChoice,
    axes: AxisChoice,
    to_onnx: bool,
    provider: Literal["cpu", "cuda", "tensorrt"],
    accept_doubts: bool,
    running: RunChoice,
) -> Outcome:
    """Train a compressed model towards its dense one; all sizes stay the same.

    FOLDER is the run folder of a `compress`. Its weights, ONNX file and report are replaced. The
    weights kept are the best on held-out examples, and never worse there than the first ones.
    Rerunning the same command after an interruption resumes where it stopped.
    """
    running.use_threads()
    if data.data is None:
        raise click.UsageError("give training data: --data TEXT", click.get_current_context())

    from lrcompress.pipeline import TuneRunOptions, run_tune
    from lrcompress_cli.json_output import tune_record
    from lrcompress_cli.tables.summary import Summary

    options = TuneRunOptions(
        source=teacher.source(data, running.seed),
        folder=running.folder(folder),
        request=tuning.request(running.seed),
        provider=provider,
        axes=axes.request() if axes.dynamic or axes.fixed else None,
        to_onnx=to_onnx,
    )
    result = run_tune(options, terminal.progress)
    return run_outcome(
        tune_record(result), Summary(result), result.report, accept_doubts=accept_doubts
    )
