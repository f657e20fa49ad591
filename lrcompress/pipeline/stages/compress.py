"""The compress stage, with a checkpoint after every layer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lrcompress.compression.checkpoint import FolderStore
from lrcompress.compression.compress import compress_
from lrcompress.compression.doubts import SET_ASIDE, doubts, remarks
from lrcompress.compression.measure import Divergence as Measured
from lrcompress.compression.report import CompressReport
from lrcompress.distributed import on_main
from lrcompress.formats.stages_json import stage_key
from lrcompress.json_dataclasses import to_json
from lrcompress.pipeline.compressed_model import save_compressed
from lrcompress.pipeline.context import RunContext
from lrcompress.pipeline.stages.load import Loaded
from lrcompress.pipeline.stages.plan import PlanInputs
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.reporting.report import IN_NATS, Divergence

STAGE = "compress"
WEIGHTS_NAME, RECORD_NAME = "model.safetensors", "lrcompress.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompressFacts:
    """Of a CompressReport, what the run's report shows."""

    divergences: tuple[Divergence, ...]
    fidelity: Mapping[str, float]
    warnings: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    severe: tuple[str, ...] = ()  # of the doubts


def compressed(
    job: RunContext,
    question: PlanInputs,
    plan: Plan,
    upstream: str,
    *,
    rewritten_by: str | None = None,
) -> tuple[CompressFacts, str]:
    """The compressed model in the run folder, and the stage's key.

    rewritten_by: a later stage that has finished what this run asks of it.
    """
    folder, loaded, options = job.folder, question.loaded, question.options
    key = compress_key(question, upstream)
    known = folder.finished(STAGE, key, rewritten_by=rewritten_by)
    if known is not None:
        job.clock.reused(STAGE)
        return folder.facts(STAGE, CompressFacts), key
    folder.begin(STAGE)
    with job.clock.stage(STAGE):
        report = compress_(
            loaded.model.module,
            plan,
            question.profile,
            batches=loaded.calibration,
            judging=loaded.judging,
            confirming=loaded.confirming,
            options=options.compress,
            progress=job.progress,
            store=FolderStore(folder.work(key)),
        )
        facts = _facts(report, question.profile)
        for said in (*facts.warnings, *facts.doubts):
            log.warning("%s", said)
        extra = {"plan": _summary(plan), "compress": to_json(facts)}
        save = partial(save_compressed, loaded.model.module, plan, loaded.model, folder.root)
        on_main(partial(save, example=loaded.example(), identity=loaded.identity, extra=extra))
        folder.finish(STAGE, key, _files(loaded), to_json(facts))
    return facts, key


def is_compressed(
    job: RunContext, question: PlanInputs, upstream: str, *, rewritten_by: str | None = None
) -> bool:
    """Whether `compressed` would find its work done."""
    key = compress_key(question, upstream)
    return job.folder.finished(STAGE, key, rewritten_by=rewritten_by) is not None


def compress_key(question: PlanInputs, upstream: str) -> str:
    inputs = {
        "data": question.loaded.data_fingerprint,
        "options": question.options.compress,
    }
    return stage_key(STAGE, upstream, inputs)


def _files(loaded: Loaded) -> list[str]:
    source = loaded.model.folder
    companions = [path.relative_to(source).as_posix() for path in loaded.model.companions if source]
    return [WEIGHTS_NAME, RECORD_NAME, *companions]


def _summary(plan: Plan) -> dict[str, Any]:
    return {
        "budget": str(plan.budget),
        "scope": plan.budget.scope,
        "metric": plan.metric,
        "allocator": plan.allocator,
        "params": plan.params,
        "dense_params": plan.dense_params,
        "predicted_loss": plan.predicted_loss,
    }


def _facts(report: CompressReport, profile: Profile) -> CompressFacts:
    measured: list[Divergence] = []
    fidelity: dict[str, float] = {}
    for where, found, before in (
        ("calibration", report.calibration, report.calibration_unrefitted),
        (SET_ASIDE, report.held_out, report.held_out_unrefitted),
    ):
        if found is None:
            continue
        unrefitted = None if before is None else before.mean
        predicted, positions = report.predicted_divergence, found.positions
        measured.append(Divergence(where, predicted, found.mean, unrefitted, positions))
        fidelity |= {f"{name}, {where}": v for name, v in _fidelity(report, found).items()}
    if report.refit is not None:
        fidelity["examples judging the refit: without it"] = report.refit.before
        fidelity["examples judging the refit: with it"] = report.refit.after
    warnings = (*report.warnings, *remarks(report))
    said = doubts(report, profile)
    return CompressFacts(
        divergences=tuple(measured),
        fidelity=fidelity,
        warnings=warnings,
        doubts=tuple(doubt.said for doubt in said),
        severe=tuple(doubt.said for doubt in said if doubt.severe),
    )


def _fidelity(report: CompressReport, found: Measured) -> dict[str, float]:
    """The divergence in words that people use, where there are such."""
    if report.objective == "cosine":
        return {"mean cosine": 1 - found.per_position}
    shares: dict[str, float] = {}
    if found.top1_agreement is not None:
        shares["same first choice"] = found.top1_agreement
    if report.objective in IN_NATS and found.positions != 1:
        shares["nats a position"] = found.per_position
    return shares
