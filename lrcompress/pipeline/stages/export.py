"""The export and verify stages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version

from torch import nn

from lrcompress.export.export_onnx import ExportOptions, export_onnx
from lrcompress.export.pt2 import save_pt2
from lrcompress.export.session import ProviderName
from lrcompress.export.tracing import quiet
from lrcompress.export.verify.graph_checks import WHEN_OVER
from lrcompress.export.verify.result import BudgetFacts, Check
from lrcompress.export.verify.verify import VerifyOptions, verify
from lrcompress.formats.stages_json import stage_key
from lrcompress.json_dataclasses import to_json
from lrcompress.network.batches import Batch
from lrcompress.pipeline.context import RunContext
from lrcompress.pipeline.options import RunOptions
from lrcompress.planning.latency import table_digest
from lrcompress.planning.plan import Plan
from lrcompress.reporting.report import CheckReport

EXPORT, VERIFY = "export", "verify"
ONNX_NAME, PT2_NAME = "model.onnx", "model.pt2"


@dataclass(frozen=True, eq=False)
class Product:
    """The compressed module as it was read back, and what it is exported with."""

    module: nn.Module
    batch: Batch
    plan: Plan


@dataclass(frozen=True)
class ExportFacts:
    """What the ledger holds of an export."""

    bytes: int
    nodes: Mapping[str, int]
    notes: tuple[str, ...]
    asked: ExportOptions
    pt2: bool
    axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class VerifyFacts:
    """What the ledger holds of a verification that passed."""

    checks: tuple[CheckReport, ...]


def exported(
    job: RunContext, product: Product, asked: RunOptions, upstream: str
) -> tuple[ExportFacts, str]:
    """model.onnx (and model.pt2 if asked for); the facts of its export and the stage's key."""
    folder, pt2 = job.folder, asked.pt2
    metadata = {**asked.export.metadata, **_provenance(product.plan)}
    options = replace(asked.export, metadata=metadata)
    table = "" if options.forms is None else table_digest(options.forms.table)
    key = stage_key(EXPORT, upstream, {"options": options, "pt2": pt2, "latencies": table})
    if folder.finished(EXPORT, key) is not None:
        job.clock.reused(EXPORT)
        return folder.facts(EXPORT, ExportFacts), key
    folder.begin(EXPORT)
    with job.clock.stage(EXPORT), job.progress.stage(EXPORT, 1 + pt2) as step:
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
        folder.finish(EXPORT, key, files, to_json(facts))
    return facts, key


def verified(
    job: RunContext, product: Product, provider: ProviderName, upstream: str
) -> tuple[CheckReport, ...]:
    """Every check of the file. A run that failed one is checked again when it is rerun."""
    folder = job.folder
    key = stage_key(VERIFY, upstream, {"provider": provider, "onnxruntime": _onnxruntime()})
    facts = folder.finished(VERIFY, key)
    if facts is not None:
        job.clock.reused(VERIFY)
        return folder.facts(VERIFY, VerifyFacts).checks
    folder.begin(VERIFY)
    options = VerifyOptions(provider, budget_facts(product.plan))
    with job.clock.stage(VERIFY), job.progress.stage(VERIFY, 1) as step:
        report = verify(folder.path(ONNX_NAME), product.module, product.batch, options)
        step.advance()
        checks = tuple(_reported(check, product.plan) for check in report.checks)
        if all(check.passed is not False for check in checks):
            folder.finish(VERIFY, key, (), {"checks": to_json(checks)})
    return checks


def _reported(check: Check, plan: Plan) -> CheckReport:
    """The check as it was; of a budget in FLOPs or time, which no file shows, what was planned."""
    passed, detail = check.passed, check.detail
    if check.kind == "budget" and plan.budget.kind in ("flops", "latency"):
        passed = passed is not False and plan.within_budget
        counted = f"{plan.cost:,} FLOPs per example of {plan.limit:,} allowed"
        if plan.budget.kind == "latency":
            share = plan.budget.amount
            counted = (
                f"{share * plan.cost / plan.limit:.1%} of the dense latency, as estimated from "
                f"measurements of single layers, of {share:.1%} allowed"
            )
        detail = f"{counted}; {detail}"
        if passed is False and check.passed is not False:
            detail += f"; {WHEN_OVER}"
    return CheckReport(check.name, check.kind, passed, detail)


def budget_facts(plan: Plan) -> BudgetFacts:
    """What the file may hold: what the plan needs, and what it left of its budget.

    FLOPs and time are no property of the file; the plan has counted them.
    """
    room = plan.limit - plan.cost
    if plan.budget.kind == "params":
        return BudgetFacts(params=plan.params + room)
    if plan.budget.kind == "bytes":
        return BudgetFacts(bytes=plan.bytes + room)
    return BudgetFacts(params=plan.params)


def _provenance(plan: Plan) -> dict[str, str]:
    return {
        "source_fingerprint": plan.model_fingerprint,
        "budget": str(plan.budget),
        "params": str(plan.params),
    }


def _onnxruntime() -> str:
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            return f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
    return "none"
