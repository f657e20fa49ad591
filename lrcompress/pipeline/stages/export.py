"""The export and verify stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.pt2 import save_pt2
from lrcompress.export.session import ProviderName
from lrcompress.export.tracing import quiet
from lrcompress.export.verify.graph_checks import WHEN_OVER
from lrcompress.export.verify.result import BudgetFacts, Check
from lrcompress.export.verify.verify import VerifyOptions, verify
from lrcompress.formats.stages_json import stage_key
from lrcompress.network.batches import Batch
from lrcompress.pipeline.options import RunOptions, export_within
from lrcompress.pipeline.provenance import with_provenance
from lrcompress.pipeline.stage import RunContext, Stage, StageOutput
from lrcompress.planning.latency import table_digest
from lrcompress.planning.limit import Spent
from lrcompress.planning.plan import Plan
from lrcompress.reporting.report import CheckReport

ONNX_NAME, PT2_NAME = "model.onnx", "model.pt2"


@dataclass(frozen=True, eq=False)
class Product:
    """The compressed module, read back from disk, with the example batch and the plan."""

    module: nn.Module
    batch: Batch
    plan: Plan


@dataclass(frozen=True)
class ExportFacts:
    """The facts of an export in stages.json."""

    bytes: int
    nodes: Mapping[str, int]
    notes: tuple[str, ...]
    asked: ExportOptions
    pt2: bool
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyFacts:
    """The facts of a successful verification in stages.json."""

    checks: tuple[CheckReport, ...]


EXPORT, VERIFY = Stage("export", ExportFacts), Stage("verify", VerifyFacts)


def export_model(
    context: RunContext, product: Product, asked: RunOptions, upstream: str
) -> tuple[ExportFacts, str]:
    """Write model.onnx (and model.pt2 if requested); return the facts and the stage's key."""
    folder, pt2 = context.folder, asked.pt2
    plan = product.plan
    export = export_within(asked.export, plan.budgets)
    options = with_provenance(replace(export, provider=asked.provider), plan)
    table = "" if options.forms is None else table_digest(options.forms.table)
    key = stage_key(EXPORT.name, upstream, {"options": options, "pt2": pt2, "latencies": table})

    def work() -> StageOutput[ExportFacts]:
        with context.progress.stage(EXPORT.name, 1 + pt2) as step:
            report = export_onnx(product.module, product.batch, folder.path(ONNX_NAME), options)
            step.advance()
            files = list(report.files)
            if pt2:
                with quiet():
                    save_pt2(product.module, product.batch, folder.path(PT2_NAME))
                step.advance()
                files.append(PT2_NAME)
        facts = ExportFacts(
            bytes=report.bytes,
            nodes=dict(report.node_counts),
            notes=report.notes,
            asked=asked.export,
            pt2=pt2,
            axes=report.axes,
        )
        return StageOutput(files, facts)

    return EXPORT.run(context, key, work), key


def known_graph(context: RunContext) -> tuple[ExportFacts, tuple[CheckReport, ...]] | None:
    """Return the facts and checks of a verified graph of the current weights in the folder.

    Another graph is forgotten, and so removed at the end of the run: it was never verified, or it
    failed.
    """
    folder = context.folder
    record, verified = folder.record(EXPORT.name), VERIFY.recorded(folder)
    if record is None or verified is None or not EXPORT.is_finished(context, record.key):
        folder.begin(EXPORT.name)
        return None
    for stage in (EXPORT, VERIFY):
        context.clock.reused(stage.name)
    return folder.facts(EXPORT.name, ExportFacts), verified.checks


def verify_model(
    context: RunContext, product: Product, provider: ProviderName, upstream: str
) -> tuple[CheckReport, ...]:
    """Run every check of the file. A rerun repeats the checks if one has failed."""
    folder = context.folder
    key = stage_key(VERIFY.name, upstream, {"provider": provider, "onnxruntime": _onnxruntime()})

    def work() -> StageOutput[VerifyFacts]:
        options = VerifyOptions(provider, budget_facts(product.plan))
        with context.progress.stage(VERIFY.name, 1) as step:
            report = verify(folder.path(ONNX_NAME), product.module, product.batch, options)
            step.advance()
        checks = tuple(_reported(check, product.plan) for check in report.checks)
        passed = all(check.passed is not False for check in checks)
        return StageOutput((), VerifyFacts(checks), finished=passed)

    return VERIFY.run(context, key, work).checks


def _reported(check: Check, plan: Plan) -> CheckReport:
    """Report a check. A file shows neither FLOPs nor time, so the plan's figures count for them."""
    passed, detail = check.passed, check.detail
    unseen = [one for one in plan.spent if one.budget.kind in ("flops", "latency")]
    if check.kind == "budget" and unseen:
        passed = passed is not False and plan.within_budget
        counted = "; ".join(_counted(one, plan) for one in unseen)
        detail = f"{counted}; {detail}"
        if passed is False and check.passed is not False:
            detail += f"; {WHEN_OVER}"
    return CheckReport(check.name, check.kind, passed, detail)


def _counted(one: Spent, plan: Plan) -> str:
    if one.budget.kind == "flops":
        return f"{one.cost:,} FLOPs per example of {one.limit:,} allowed"
    share, known = one.budget.amount, plan.options.network_time
    besides = "" if one.budget.scope == "total" else " of the layers'"
    if known is not None and plan.latency_ratio is not None:
        return (
            f"{plan.latency_ratio:.1%} of the dense latency, measured ({known.measured_at}), of "
            f"{share:.1%}{besides} allowed"
        )
    source = "measurements of single layers" if known is None else "the times of the dense network"
    return (
        f"{share * one.cost / one.limit:.1%} of the dense latency, as estimated from {source}, "
        f"of {share:.1%}{besides} allowed"
    )


def budget_facts(plan: Plan) -> BudgetFacts:
    """Return the limits for the file: the size in the plan plus what is left of the budget.

    FLOPs and time are not properties of the file. The plan has counted them.
    """
    room = {one.budget.kind: one.limit - one.cost for one in plan.spent}
    params = plan.params + room["params"] if "params" in room else None
    size = plan.bytes + room["bytes"] if "bytes" in room else None
    if params is None and size is None:
        return BudgetFacts(params=plan.params)
    return BudgetFacts(params=params, bytes=size)


def _onnxruntime() -> str:
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            pass
    return "none"
