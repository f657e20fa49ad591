"""`lrcompress compress`: the whole pipeline, from a model to a smaller, verified ONNX file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from lrcompress_cli.options.axes import AxisChoice, axis_options
from lrcompress_cli.options.export import (
    ExportChoice,
    export_options,
    provider_option,
    pt2_option,
    to_onnx_option,
)
from lrcompress_cli.options.gather import FILE, FOLDER, NEW_FOLDER
from lrcompress_cli.options.lists import Numbers
from lrcompress_cli.options.plan import PlanChoice, planning_options
from lrcompress_cli.options.profile import MeasureChoice, measuring_options
from lrcompress_cli.options.run import RunChoice, running_options
from lrcompress_cli.options.source import DataChoice, ModelChoice, data_options, model_options
from lrcompress_cli.options.tune import ABOVE_ZERO
from lrcompress_cli.run_outcome import accept_doubts_option, run_outcome
from lrcompress_cli.terminal import Outcome, Terminal, reporting

if TYPE_CHECKING:
    from lrcompress.pipeline import TuneRequest


@click.command()
@model_options
@data_options
@planning_options
@measuring_options
@click.option(
    "--plan",
    "plan_file",
    type=FILE,
    help="Follow this plan.json, edited or not, instead of a budget.",
)
@click.option(
    "--profile",
    "profile_folder",
    type=FOLDER,
    help="Use the profile in this folder instead of measuring it again.",
)
@click.option(
    "--refit/--no-refit",
    default=None,
    help="Refit each layer to the outputs of the compressed layers before it; by default if it "
    "helps on held-out data.",
)
@click.option(
    "--rounds",
    type=click.IntRange(min=0),
    default=3,
    metavar="N",
    show_default=True,
    help="How often the plan is corrected by its measurement on held-out examples and made again; "
    "with 0 the profile alone decides.",
)
@export_options
@axis_options
@to_onnx_option
@pt2_option
@provider_option
@click.option(
    "--sweep",
    type=Numbers(),
    metavar="LIST",
    default=(),
    help="Also compare predicted with measured divergence at these percentages of the parameters, "
    "separated by commas, for the report.",
)
@click.option(
    "--tune",
    is_flag=True,
    help="Train the compressed model towards the dense one; `lrcompress tune` has more options.",
)
@click.option(
    "--tune-steps",
    type=click.IntRange(min=1),
    metavar="N",
    help="Steps of the tuning; 200 by default, or as many as fit in --tune-minutes.",
)
@click.option(
    "--tune-minutes",
    type=ABOVE_ZERO,
    metavar="X",
    help="Minutes of the tuning, approximately.",
)
@click.option(
    "--drop-moments",
    is_flag=True,
    help="Remove the profile's second moments, most of the folder, after the run is verified.",
)
@click.option("-o", "--output", type=NEW_FOLDER, help="Run folder to write.")
@accept_doubts_option
@click.option(
    "--dry-run",
    is_flag=True,
    help="Profile and plan, show the plan, and write nothing.",
)
@running_options
@reporting
def command(
    terminal: Terminal,
    *,
    model: ModelChoice,
    data: DataChoice,
    planning: PlanChoice,
    measuring: MeasureChoice,
    plan_file: Path | None,
    profile_folder: Path | None,
    refit: bool | None,
    rounds: int,
    exporting: ExportChoice,
    axes: AxisChoice,
    provider: Literal["cpu", "cuda", "tensorrt"],
    to_onnx: bool,
    pt2: bool,
    sweep: tuple[int, ...],
    tune: bool,
    tune_steps: int | None,
    tune_minutes: float | None,
    drop_moments: bool,
    output: Path | None,
    accept_doubts: bool,
    dry_run: bool,
    running: RunChoice,
) -> Outcome:
    """Profile, plan, compress, export and verify in one run.

    MODEL is a Hugging Face folder, pkg.module:factory, or an earlier run folder. Rerunning the
    same command after an interruption resumes where it stopped.
    """
    running.use_threads()
    budgets = planning.parsed_budgets()
    _check_together(planning, plan_file, output, dry_run=dry_run)
    tuning = tune or tune_steps is not None or tune_minutes is not None
    if tuning and data.data is None:
        raise click.UsageError("--tune needs data: give --data", click.get_current_context())

    from lrcompress.compression.compress import CompressOptions
    from lrcompress.pipeline import RunOptions, preview, run
    from lrcompress.reporting.collect import left_alone_reports
    from lrcompress_cli.json_output import compress_record, preview_record
    from lrcompress_cli.tables.axes import axis_lines
    from lrcompress_cli.tables.left_alone import LeftAloneTable
    from lrcompress_cli.tables.plan import PlanTable
    from lrcompress_cli.tables.summary import Summary

    options = RunOptions(
        source=model.source(data, running.seed),
        folder=running.folder(output or Path()),
        budget=budgets[0] if budgets else None,
        also=budgets[1:],
        plan_file=plan_file,
        profile_folder=profile_folder,
        profile=measuring.options(
            running.seed, planning.metric, planning.structures, planning.formats_for(provider)
        ),
        plan=planning.options(exporting.precision, provider),
        rounds=rounds,
        compress=CompressOptions(refit=refit),
        export=exporting.options(provider, planning.rows, planning.latency_table, axes.request()),
        provider=provider,
        pt2=pt2,
        threads=running.threads,
        to_onnx=to_onnx,
        sweep=_percentages(sweep),
        tune=_request(tune_steps, tune_minutes, running.seed) if tuning else None,
        drop_moments=drop_moments,
    )
    if dry_run:
        seen = preview(options, terminal.progress)
        stays = LeftAloneTable(left_alone_reports(seen.profile, seen.plan), seen.plan.dense_params)
        return Outcome(
            preview_record(seen), [PlanTable(seen.plan), "", stays, axis_lines(seen.axes)]
        )
    result = run(options, terminal.progress)
    return run_outcome(
        compress_record(result), Summary(result), result.report, accept_doubts=accept_doubts
    )


def _request(steps: int | None, minutes: float | None, seed: int) -> TuneRequest:
    from lrcompress.pipeline import TuneRequest
    from lrcompress.tuning.options import TuneOptions

    return TuneRequest(TuneOptions(steps=steps, minutes=minutes, seed=seed))


def _percentages(sweep: tuple[int, ...]) -> tuple[int, ...]:
    if any(percent > 100 for percent in sweep):
        context = click.get_current_context()
        raise click.UsageError("--sweep takes percentages; write 80,60,40", context)
    return sweep


def _check_together(
    planning: PlanChoice, plan_file: Path | None, output: Path | None, *, dry_run: bool
) -> None:
    """Raise a usage error for options that need or exclude each other."""
    context = click.get_current_context()
    if (not planning.budget) == (plan_file is None):
        both = bool(planning.budget)
        raise click.UsageError(
            "--budget and --plan exclude each other"
            if both
            else "give a budget or a plan: --budget 50%, or --plan plan.json",
            context,
        )
    if output is None and not dry_run:
        raise click.UsageError("name the run folder: -o out/", context)
