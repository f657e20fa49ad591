"""From a compressed model in the run folder to its ONNX file, the checks of it and the report."""

from __future__ import annotations

from dataclasses import dataclass

from lrcompress.pipeline.compressing import CompressFacts
from lrcompress.pipeline.deciding import PlanFacts
from lrcompress.pipeline.exporting import EXPORT, Product, exported, verified
from lrcompress.pipeline.folder import PROFILE_FOLDER
from lrcompress.pipeline.job import Job
from lrcompress.pipeline.ledger import read_facts
from lrcompress.pipeline.measuring import without_moments
from lrcompress.pipeline.options import RunOptions
from lrcompress.pipeline.reporting import Findings, run_report, with_recorded, write_report
from lrcompress.pipeline.sweeping import SweepFacts
from lrcompress.planning.plan import Plan
from lrcompress.profiling.batches import Batch
from lrcompress.profiling.profile import Profile
from lrcompress.reporting.report import Report
from lrcompress.storage import load
from lrcompress.tuning.tune import TuneReport


@dataclass(frozen=True, eq=False)
class Made:
    """What a run has come to when its compressed model is written; `key` is its last stage's."""

    profile: Profile
    plan: Plan
    selection: PlanFacts
    curve: SweepFacts
    outcome: CompressFacts
    warnings: tuple[str, ...]
    key: str
    tuning: TuneReport | None = None


def _doubts(made: Made) -> tuple[str, ...]:
    """What was said of the compressed network. A tuning came after it, and does not undo it."""
    before = "" if made.tuning is None else "before tuning: "
    return tuple(f"{before}{doubt}" for doubt in made.outcome.doubts)


def delivered(job: Job, options: RunOptions, batch: Batch, made: Made) -> Report:
    """Export, verify and report: one process does it, from what was written."""
    root, source, found = job.folder.root, options.source, made.profile
    product = Product(load(root, trust_remote_code=source.trust_remote_code), batch, made.plan)
    facts, key = exported(job, product, options, made.key)
    checks = verified(job, product, options.provider, key)
    if options.drop_moments and all(check.passed is not False for check in checks):
        found = without_moments(job, PROFILE_FOLDER)
    job.folder.clean()
    findings = Findings(
        made.plan,
        read_facts(int, facts, EXPORT, "bytes"),
        made.outcome.divergences,
        dict(made.outcome.fidelity),
        checks,
        (*made.warnings, *read_facts(tuple[str, ...], facts, EXPORT, "notes")),
        made.curve.points,
        made.tuning,
        made.selection.tried,
        made.selection.examples,
        _doubts(made),
    )
    report = run_report(source.model, found, findings, options.folder, job.clock, options.provider)
    report = with_recorded(report, root)
    write_report(report, options.folder)
    return report
