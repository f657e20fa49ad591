"""The last stage: report.json and report.html, from the results of the other stages."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lrcompress.atomic import is_temporary
from lrcompress.errors import DataError
from lrcompress.formats.files import write_text
from lrcompress.pipeline.foreign_files import LEDGER_NAME
from lrcompress.pipeline.lock import LOCK_NAME
from lrcompress.pipeline.options import FolderOptions
from lrcompress.pipeline.stage import Clock
from lrcompress.pipeline.stages.export import EXPORT
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.reporting.collect import dense_cost, layer_reports, left_alone_reports
from lrcompress.reporting.environment import describe_environment
from lrcompress.reporting.html import render_html
from lrcompress.reporting.report import Output, Report

REPORT_JSON, REPORT_HTML = "report.json", "report.html"


def base_report(
    model: str,
    profile: Profile,
    plan: Plan | None,
    options: FolderOptions,
    clock: Clock,
    provider: str = "cpu",
) -> Report:
    """Return the report of a profile and, if there is one, of what the plan decides."""
    return Report(
        model=model,
        command=options.command,
        metric=profile.metric if plan is None else plan.metric,
        objective=profile.objective,
        readout=() if profile.readout is None else profile.readout.lines,
        examples=profile.examples,
        tokens=profile.tokens,
        before=dense_cost(profile),
        layers=layer_reports(profile, plan),
        left_alone=left_alone_reports(profile, plan),
        environment=describe_environment(
            device="cpu", provider=provider, threads=torch.get_num_threads()
        ),
        stages=tuple(clock.stages),
        files=output_files(options.output),
    )


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


def read_report(path: Path) -> Report:
    """Read report.json; raise DataError if it is not a report of this version."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        raise DataError(f"{path}: cannot be read as text; rerun the command") from cause
    return Report.from_json(text, path)
