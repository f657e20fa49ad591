"""The last steps of a run: export the compressed model, verify it and write the report."""

from __future__ import annotations

from dataclasses import dataclass

from lrcompress.compression.doubts import Doubt, tuned_doubts, void_doubts
from lrcompress.network.batches import Batch
from lrcompress.pipeline.context import RunContext
from lrcompress.pipeline.foreign_files import PROFILE_FOLDER
from lrcompress.pipeline.options import RunOptions
from lrcompress.pipeline.stages.compress import CompressFacts
from lrcompress.pipeline.stages.export import Product, export_model, verify_model
from lrcompress.pipeline.stages.plan import PlanFacts
from lrcompress.pipeline.stages.profile import delete_moments
from lrcompress.pipeline.stages.report import Findings, run_report, with_recorded, write_report
from lrcompress.pipeline.stages.sweep import SweepFacts
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.reporting.report import Report
from lrcompress.sources.compressed_model import load
from lrcompress.tuning.report import TuneReport


@dataclass(frozen=True, eq=False)
class CompressedRun:
    """The results of a run with a written compressed model. key: the key of its last stage."""

    profile: Profile
    plan: Plan
    selection: PlanFacts
    curve: SweepFacts
    outcome: CompressFacts
    warnings: tuple[str, ...]
    key: str
    tuning: TuneReport | None = None


def _doubts(made: CompressedRun) -> tuple[Doubt, ...]:
    """Return the doubts about the compressed network.

    Tuning keeps the earlier doubts. If it measured the quality again, they are no longer severe,
    except where the comparison itself was void.
    """
    found = [Doubt(said, said in made.outcome.severe) for said in made.outcome.doubts]
    if made.tuning is None:
        return tuple(found)
    void, tuned = void_doubts(made.profile), made.tuning.quality
    before = [
        Doubt(f"before tuning: {doubt.said}", doubt.severe and (tuned is None or doubt in void))
        for doubt in found
    ]
    return (*before, *(tuned_doubts(made.profile.objective, tuned) if tuned else ()))


def deliver(context: RunContext, options: RunOptions, batch: Batch, made: CompressedRun) -> Report:
    """Export, verify and report the compressed model of the folder, in one process."""
    root, source, found = context.folder.root, options.source, made.profile
    product = Product(load(root, trust_remote_code=source.trust_remote_code), batch, made.plan)
    facts, key = export_model(context, product, options, made.key)
    checks = verify_model(context, product, options.provider, key)
    if options.drop_moments and all(check.passed is not False for check in checks):
        found = delete_moments(context, PROFILE_FOLDER)
    context.folder.clean()
    context.folder.remove_replaced()
    findings = Findings(
        made.plan,
        facts.bytes,
        made.outcome.divergences,
        dict(made.outcome.fidelity),
        checks,
        (*made.warnings, *facts.notes),
        made.curve.points,
        made.tuning,
        made.selection.tried,
        made.selection.examples,
        _doubts(made),
        facts.axes,
    )
    report = run_report(
        source.model, found, findings, options.folder, context.clock, options.provider
    )
    report = with_recorded(report, root)
    write_report(report, options.folder)
    return report
