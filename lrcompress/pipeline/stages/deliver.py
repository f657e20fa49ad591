"""The last steps of a run: export the compressed model, verify it and write the report."""

from __future__ import annotations

from dataclasses import dataclass, replace

from lrcompress.compression.doubts import Doubt, tuned_doubts, void_doubts
from lrcompress.distributed import main_only
from lrcompress.formats.run_json import WEIGHTS_NAME
from lrcompress.network.batches import Batch
from lrcompress.pipeline.options import RunOptions
from lrcompress.pipeline.stage import RunContext
from lrcompress.pipeline.stages.compress import CompressFacts
from lrcompress.pipeline.stages.export import (
    ExportFacts,
    Product,
    export_model,
    known_graph,
    verify_model,
)
from lrcompress.pipeline.stages.plan import PlanFacts
from lrcompress.pipeline.stages.profile import delete_moments
from lrcompress.pipeline.stages.report import base_report, with_recorded, write_report
from lrcompress.pipeline.stages.sweep import SweepFacts
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.reporting.report import CheckReport, Cost, Report
from lrcompress.sources.compressed_model import load
from lrcompress.tuning.report import TuneReport

NO_GRAPH = "no graph was exported or verified, as requested; `lrcompress export` writes it"


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


@main_only
def deliver(context: RunContext, options: RunOptions, batch: Batch, made: CompressedRun) -> Report:
    """Export, verify and report the compressed model of the folder, in one process.

    Without the export, a verified graph of these weights from an earlier run stays. If there is
    none, the size in the report is that of the weights' own file.
    """
    folder, source, profile, plan = context.folder, options.source, made.profile, made.plan
    graph = _graph(context, options, batch, made) if options.to_onnx else known_graph(context)
    weights = folder.path(WEIGHTS_NAME).stat().st_size
    nothing = ExportFacts(weights, {}, (NO_GRAPH,), options.export, pt2=False)
    exported, checks = graph or (nothing, ())
    if options.drop_moments and all(check.passed is not False for check in checks):
        profile = delete_moments(folder)
    folder.clean()
    folder.remove_replaced()
    doubts = _doubts(made)
    base = base_report(source.model, profile, plan, options.folder, context.clock, options.provider)
    before = (
        profile.total_bytes if graph is None else dense_file_bytes(profile, plan, exported.bytes)
    )
    report = replace(
        base,
        before=replace(base.before, bytes=before),
        after=Cost(plan.params, exported.bytes, plan.flops_per_example),
        budget=_budget_in_words(plan),
        allocator=plan.allocator,
        optimality_gap=plan.optimality_gap,
        divergences=made.outcome.divergences,
        sweep=made.curve.points,
        tried=made.selection.tried,
        judging_examples=made.selection.examples,
        doubts=tuple(doubt.said for doubt in doubts),
        severe_doubts=tuple(doubt.said for doubt in doubts if doubt.severe),
        fidelity={**made.outcome.fidelity, **_tuned_quality(made.tuning)},
        tuning=made.tuning,
        checks=checks,
        axes=exported.axes,
        warnings=(*profile.warnings, *plan.warnings, *made.warnings, *exported.notes),
    )
    report = with_recorded(report, folder.root)
    write_report(report, options.folder)
    return report


def dense_file_bytes(profile: Profile, plan: Plan, file_bytes: int) -> int:
    """Return the bytes of the dense network's graph, of which a budget of bytes is a share.

    Without such a budget it is not written: it has its weights in the stored dtype, and as much
    besides them as the compressed graph. file_bytes: of the compressed graph.
    """
    if any(budget.kind == "bytes" for budget in plan.budgets):
        return plan.dense_bytes
    return profile.total_bytes + max(file_bytes - plan.bytes, 0)


def _graph(
    context: RunContext, options: RunOptions, batch: Batch, made: CompressedRun
) -> tuple[ExportFacts, tuple[CheckReport, ...]]:
    """Export and verify the compressed model."""
    trusted = options.source.trust_remote_code
    product = Product(load(context.folder.root, trust_remote_code=trusted), batch, made.plan)
    exported, key = export_model(context, product, options, made.key)
    return exported, verify_model(context, product, options.provider, key)


def _tuned_quality(tuning: TuneReport | None) -> dict[str, float]:
    """Return the held-out quality before and after tuning, in familiar measures."""
    if tuning is None:
        return {}
    name, start, end = tuning.measure, tuning.start, tuning.end
    if name == "cosine divergence":
        name = "mean cosine"
        start, end = (1 - value / tuning.positions for value in (start, end))
    return {f"{name}, held out: before tuning": start, f"{name}, held out: after tuning": end}


def _budget_in_words(plan: Plan) -> str:
    whole, words = plan.budget.scope == "total", plan.budgets_in_words
    return words if whole else f"{words} of the compressible layers"
