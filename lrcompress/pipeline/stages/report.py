"""The last stage: report.json and report.html, from the results of the other stages."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from lrcompress.atomic import is_temporary
from lrcompress.compression.doubts import Doubt
from lrcompress.compression.sweep import SweepPoint
from lrcompress.errors import DataError
from lrcompress.formats.files import write_text
from lrcompress.pipeline.clock import Clock
from lrcompress.pipeline.foreign_files import LEDGER_NAME
from lrcompress.pipeline.lock import LOCK_NAME
from lrcompress.pipeline.options import FolderOptions
from lrcompress.pipeline.stages.export import EXPORT
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.reporting.collect import dense_cost, layer_reports, left_alone_reports
from lrcompress.reporting.environment import describe_environment
from lrcompress.reporting.html import render_html
from lrcompress.reporting.report import CheckReport, Cost, Divergence, Output, Report
from lrcompress.selection.rounds import Tried
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.tuning.report import TuneReport

REPORT_JSON, REPORT_HTML = "report.json", "report.html"


@dataclass(frozen=True, eq=False)
class Findings:
    """The results of the stages after the profile."""

    plan: Plan
    onnx_bytes: int
    divergences: tuple[Divergence, ...]
    fidelity: dict[str, float]
    checks: tuple[CheckReport, ...]
    warnings: tuple[str, ...]
    sweep: tuple[SweepPoint, ...] = ()
    tuning: TuneReport | None = None
    tried: tuple[Tried, ...] = ()
    judging_examples: int = 0
    doubts: tuple[Doubt, ...] = ()
    axes: tuple[str, ...] = ()


def profile_report(
    model: LoadedModel, profile: Profile, options: FolderOptions, clock: Clock
) -> Report:
    """Return the report of a profile without compression."""
    return Report(
        model=model.reference.text,
        command=options.command,
        metric=profile.metric,
        objective=profile.objective,
        readout=() if profile.readout is None else profile.readout.lines,
        examples=profile.examples,
        tokens=profile.tokens,
        before=dense_cost(profile),
        layers=layer_reports(profile, None),
        left_alone=left_alone_reports(profile, None),
        environment=_environment("cpu"),
        stages=tuple(clock.stages),
        files=output_files(options.output),
        warnings=(*model.warnings, *profile.warnings),
    )


def run_report(
    model: str,
    profile: Profile,
    found: Findings,
    options: FolderOptions,
    clock: Clock,
    provider: str,
) -> Report:
    """Return the report of a whole run."""
    plan = found.plan
    return Report(
        model=model,
        command=options.command,
        metric=plan.metric,
        objective=profile.objective,
        readout=() if profile.readout is None else profile.readout.lines,
        examples=profile.examples,
        tokens=profile.tokens,
        before=dense_cost(profile),
        after=Cost(plan.params, found.onnx_bytes, plan.flops_per_example),
        budget=_budget_in_words(plan),
        allocator=plan.allocator,
        optimality_gap=plan.optimality_gap,
        divergences=found.divergences,
        sweep=found.sweep,
        tried=found.tried,
        judging_examples=found.judging_examples,
        doubts=tuple(doubt.said for doubt in found.doubts),
        severe_doubts=tuple(doubt.said for doubt in found.doubts if doubt.severe),
        fidelity={**found.fidelity, **_gained(found.tuning)},
        tuning=found.tuning,
        layers=layer_reports(profile, plan),
        left_alone=left_alone_reports(profile, plan),
        checks=found.checks,
        environment=_environment(provider),
        stages=tuple(clock.stages),
        files=output_files(options.output),
        axes=found.axes,
        warnings=(*profile.warnings, *plan.warnings, *found.warnings),
    )


def _gained(tuning: TuneReport | None) -> dict[str, float]:
    """Return the held-out quality before and after tuning, in familiar measures."""
    if tuning is None:
        return {}
    name, start, end = tuning.measure, tuning.start, tuning.end
    if name == "cosine divergence":
        name = "mean cosine"
        start, end = (1 - value / tuning.positions for value in (start, end))
    return {f"{name}, held out: before tuning": start, f"{name}, held out: after tuning": end}


def _budget_in_words(plan: Plan) -> str:
    whole = plan.budget.scope == "total"
    return str(plan.budget) if whole else f"{plan.budget} of the compressible layers"


def with_recorded(report: Report, root: Path) -> Report:
    """Take stage times and latencies from the folder's earlier report, where stages were reused."""
    path = root / REPORT_JSON
    if not path.is_file():
        return report
    try:
        earlier = read_report(path)
    except DataError:
        return report  # of another version, or unreadable
    seconds = {stage.name: stage.seconds for stage in earlier.stages}
    stages = tuple(
        replace(stage, seconds=seconds.get(stage.name, 0.0)) if stage.reused else stage
        for stage in report.stages
    )
    report = replace(report, stages=stages)
    same_file = any(stage.name == EXPORT.name and stage.reused for stage in stages)
    if report.after is None or earlier.after is None or not same_file:
        return report
    return replace(
        report,
        before=replace(report.before, latency_ms=earlier.before.latency_ms),
        after=replace(report.after, latency_ms=earlier.after.latency_ms),
    )


def write_report(report: Report, options: FolderOptions) -> None:
    write_text(options.output / REPORT_JSON, report.to_json() + "\n")
    if options.report:
        write_text(options.output / REPORT_HTML, render_html(report))


def output_files(root: Path) -> tuple[Output, ...]:
    """Return the files of the run folder, without the ledger, the lock and the reports."""
    books = {LEDGER_NAME, LOCK_NAME, REPORT_JSON, REPORT_HTML}
    found = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and path.name not in books and not is_temporary(path)
    )
    return tuple(Output(path.relative_to(root).as_posix(), path.stat().st_size) for path in found)


def _environment(provider: str) -> dict[str, str]:
    return describe_environment(device="cpu", provider=provider, threads=torch.get_num_threads())


def read_report(path: Path) -> Report:
    """Read report.json; raise DataError if it is not a report of this version."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path}: cannot be read as text; rerun the command") from cause
    return Report.from_json(text, path)
