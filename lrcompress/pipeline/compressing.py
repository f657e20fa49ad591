"""The compress stage, with a checkpoint after every layer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lrcompress.compression.checkpoint import FolderStore
from lrcompress.compression.compress import CompressReport, compress_
from lrcompress.compression.measure import Divergence as Measured
from lrcompress.compression.trust import SET_ASIDE, doubts, remarks
from lrcompress.distributed import on_main
from lrcompress.pipeline.deciding import Question
from lrcompress.pipeline.job import Job
from lrcompress.pipeline.ledger import read_facts, stage_key
from lrcompress.pipeline.loading import Loaded
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.records import to_json
from lrcompress.reporting.report import Divergence
from lrcompress.storage import save_compressed

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


def compressed(
    job: Job, question: Question, plan: Plan, upstream: str, *, rewritten_by: str | None = None
) -> tuple[CompressFacts, str]:
    """The compressed model in the run folder, and the stage's key.

    rewritten_by: a later stage that has finished what this run asks of it.
    """
    folder, loaded, options = job.folder, question.loaded, question.options
    key = compress_key(question, upstream)
    known = folder.finished(STAGE, key, rewritten_by=rewritten_by)
    if known is not None:
        job.clock.reused(STAGE)
        return read_facts(CompressFacts, known, STAGE), key
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
        on_main(partial(save, example=loaded.example(), extra=extra))
        folder.finish(STAGE, key, _files(loaded), to_json(facts))
    return facts, key


def is_compressed(
    job: Job, question: Question, upstream: str, *, rewritten_by: str | None = None
) -> bool:
    """Whether `compressed` would find its work done."""
    key = compress_key(question, upstream)
    return job.folder.finished(STAGE, key, rewritten_by=rewritten_by) is not None


def compress_key(question: Question, upstream: str) -> str:
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
    for where, found in (("calibration", report.calibration), (SET_ASIDE, report.held_out)):
        if found is None:
            continue
        measured.append(Divergence(where, report.predicted_divergence, found.mean))
        fidelity |= {f"{name}, {where}": v for name, v in _fidelity(report, found).items()}
    if report.refit is not None:
        fidelity["examples judging the refit: without it"] = report.refit.before
        fidelity["examples judging the refit: with it"] = report.refit.after
    warnings = (*report.warnings, *remarks(report))
    return CompressFacts(tuple(measured), fidelity, warnings, doubts(report, profile))


def _fidelity(report: CompressReport, found: Measured) -> dict[str, float]:
    """The divergence in words that people use, where there are such."""
    if report.objective == "cosine":
        return {"mean cosine": 1 - found.mean}
    if found.top1_agreement is not None:
        return {"same first choice": found.top1_agreement}
    return {}
