"""The compress stage, with a checkpoint after every layer."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from lrcompress.checkpoint import CheckpointFolder
from lrcompress.compression.compress import compress_
from lrcompress.compression.doubts import SET_ASIDE, doubts, remarks
from lrcompress.compression.measure import Divergence as Measured
from lrcompress.compression.report import CompressReport
from lrcompress.distributed import on_main
from lrcompress.formats.run_json import RECORD_NAME, WEIGHTS_NAME
from lrcompress.formats.stages_json import stage_key
from lrcompress.json_dataclasses import to_json
from lrcompress.pipeline.stage import RunContext, Stage, StageOutput
from lrcompress.pipeline.stages.load import Loaded
from lrcompress.pipeline.stages.plan import PlanInputs
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.reporting.report import IN_NATS, Divergence
from lrcompress.sources.compressed_model import save_compressed

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CompressFacts:
    """The part of a CompressReport that the run's report shows."""

    divergences: tuple[Divergence, ...]
    fidelity: Mapping[str, float]
    warnings: tuple[str, ...]
    doubts: tuple[str, ...] = ()
    severe: tuple[str, ...] = ()  # subset of `doubts`


STAGE = Stage("compress", CompressFacts)


def compress_model(
    context: RunContext,
    inputs: PlanInputs,
    plan: Plan,
    upstream: str,
    *,
    rewritten_by: str | None = None,
) -> tuple[CompressFacts, str]:
    """Write the compressed model to the run folder; return the facts and the stage's key.

    rewritten_by: a later stage that is finished and rewrote files of this one.
    """
    folder, loaded, options = context.folder, inputs.loaded, inputs.options
    key = compress_key(inputs, upstream)

    def work() -> StageOutput[CompressFacts]:
        report = compress_(
            loaded.model.module,
            plan,
            inputs.profile,
            batches=loaded.calibration,
            judging=loaded.judging,
            confirming=loaded.confirming,
            options=options.compress,
            progress=context.progress,
            store=CheckpointFolder(folder.work(key)),
        )
        facts = _facts(report, inputs.profile)
        for said in (*facts.warnings, *facts.doubts):
            log.warning("%s", said)
        extra = {"plan": _summary(plan), "compress": to_json(facts)}
        save = partial(save_compressed, loaded.model.module, plan, loaded.model, folder.root)
        on_main(partial(save, example=loaded.example(), identity=loaded.identity, extra=extra))
        return StageOutput(_files(loaded), facts)

    return STAGE.run(context, key, work, rewritten_by=rewritten_by), key


def is_compressed(
    context: RunContext, inputs: PlanInputs, upstream: str, *, rewritten_by: str | None = None
) -> bool:
    """Return whether `compress_model` has nothing left to do."""
    return STAGE.is_finished(context, compress_key(inputs, upstream), rewritten_by=rewritten_by)


def compress_key(inputs: PlanInputs, upstream: str) -> str:
    depends_on = {"data": inputs.loaded.data_fingerprint, "options": inputs.options.compress}
    return stage_key(STAGE.name, upstream, depends_on)


def _files(loaded: Loaded) -> list[str]:
    source = loaded.model.folder
    companions = [path.relative_to(source).as_posix() for path in loaded.model.companions if source]
    return [WEIGHTS_NAME, RECORD_NAME, *companions]


def _summary(plan: Plan) -> dict[str, Any]:
    return {
        "budget": plan.budgets_in_words,
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
    said = doubts(report, profile)
    return CompressFacts(
        divergences=tuple(measured),
        fidelity=fidelity,
        warnings=(*report.warnings, *remarks(report)),
        doubts=tuple(doubt.said for doubt in said),
        severe=tuple(doubt.said for doubt in said if doubt.severe),
    )


def _fidelity(report: CompressReport, found: Measured) -> dict[str, float]:
    """Express the divergence in familiar measures, if there are any."""
    if report.objective == "cosine":
        return {"mean cosine": 1 - found.per_position}
    shares: dict[str, float] = {}
    if found.top1_agreement is not None:
        shares["same first choice"] = found.top1_agreement
    if report.objective in IN_NATS and found.positions != 1:
        shares["nats a position"] = found.per_position
    return shares
