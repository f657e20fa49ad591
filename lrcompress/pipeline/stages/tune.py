"""The tune stage: better weights for the run folder's compressed model, sizes unchanged.

It replaces the weights that the compress stage wrote. The initial weights stay beside its
checkpoint until it has finished, so that a killed and resumed run gives bit-identical results.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

from lrcompress.atomic import copy_file
from lrcompress.checkpoint import CheckpointFolder
from lrcompress.compression.fit import layer_whitening
from lrcompress.distributed import failing_together, main_only, on_main
from lrcompress.errors import DataError, TuneError
from lrcompress.export.export_options import ExportOptions
from lrcompress.formats.files import read_json, write_json
from lrcompress.formats.run_json import RECORD_NAME, WEIGHTS_NAME
from lrcompress.formats.stages_json import stage_key
from lrcompress.formats.weights import fill_, opened_safetensors
from lrcompress.json_dataclasses import from_json, to_json
from lrcompress.metrics import Whitening
from lrcompress.network.batches import Batch
from lrcompress.network.identity import ModelIdentity, what_differs
from lrcompress.pipeline.options import TuneRequest
from lrcompress.pipeline.run_folder import RunFolder
from lrcompress.pipeline.stage import RunContext, Stage, StageOutput
from lrcompress.pipeline.stages.export import EXPORT
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile
from lrcompress.sources.compressed_model import load, save_tuned
from lrcompress.sources.factory import import_object
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.text import mask_token
from lrcompress.structures import Dense
from lrcompress.tuning.checkpoint import KIND as CHECKPOINT
from lrcompress.tuning.losses import TaskLoss
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.report import TuneReport
from lrcompress.tuning.tune import tune_

START_NAME = "start.safetensors"  # the weights before training
TEACHER_NAME = "teacher.json"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedAs:
    """How a run was exported; `asked` is None if it was not exported."""

    asked: ExportOptions | None = None
    pt2: bool = False


NOT_EXPORTED = ExportedAs()


@dataclass(frozen=True)
class TuneFacts:
    """The facts of a tuning in stages.json."""

    upstream: str  # the key of the stage that was tuned
    report: TuneReport
    export: ExportedAs
    teacher: ModelIdentity | None = None


STAGE = Stage("tune", TuneFacts)


@dataclass(frozen=True, eq=False)
class TuneInputs:
    """The inputs for tuning a compressed model. `dense` is called only if there is work to do."""

    request: TuneRequest
    dense: Callable[[], LoadedModel]
    dense_identity: ModelIdentity
    batches: list[Batch]
    data_fingerprint: str
    profile: Profile
    plan: Plan
    trust_remote_code: bool = False
    differs: Callable[[ModelIdentity], str] = lambda _: ""  # how the teacher differs from it


def tune_key(inputs: TuneInputs, upstream: str) -> str:
    depends_on = {
        "options": inputs.request,
        "dense": inputs.dense_identity.exact,
        "data": inputs.data_fingerprint,
    }
    return stage_key(STAGE.name, upstream, depends_on)


def is_tuned(context: RunContext, inputs: TuneInputs | None, upstream: str) -> bool:
    """Return whether `tune_model` has nothing left to do. upstream: the key of the tuned stage."""
    return inputs is not None and STAGE.is_finished(context, tune_key(inputs, upstream))


def tune_model(
    context: RunContext,
    inputs: TuneInputs,
    upstream: str,
    exported_as: ExportedAs = NOT_EXPORTED,
) -> tuple[TuneReport, str]:
    """Tune the run folder's model; return the report without the losses, and the stage's key.

    exported_as: how the run was exported before, recorded so that a resumed run knows it.
    """
    folder, key = context.folder, tune_key(inputs, upstream)

    def work() -> StageOutput[TuneFacts]:
        checkpoint, root = folder.work(key), folder.root
        start = checkpoint / START_NAME
        _keep_start(root / WEIGHTS_NAME, start)
        _keep_teacher(checkpoint, inputs)
        with failing_together():
            dense = inputs.dense()
            module = load(root, trust_remote_code=inputs.trust_remote_code)
            with opened_safetensors(start) as file:
                fill_(module, file.keys(), file.get_tensor, start, keep_dtype=True)
            options = _completed(inputs, dense)
            task = _task(inputs.request.task)
        report = tune_(
            module,
            dense.module,
            inputs.batches,
            options,
            task=task,
            whitenings=_whitenings(inputs) if options.adapter else None,
            progress=context.progress,
            store=CheckpointFolder(checkpoint),
        )
        report = replace(report, losses=())
        if not report.improved:
            log.warning("%s", unimproved(report))
        added = {STAGE.name: to_json(report)}
        on_main(lambda: save_tuned(module, inputs.batches[0], root, added))
        facts = TuneFacts(upstream, report, exported_as, inputs.dense_identity)
        return StageOutput([WEIGHTS_NAME, RECORD_NAME], facts)

    facts = STAGE.run(context, key, work, begins=False, forget=EXPORT.name)
    return facts.report, key


def last_export(folder: RunFolder) -> ExportedAs:
    """Return how the run was last exported; NOT_EXPORTED if it was not."""
    exported, tuning = EXPORT.recorded(folder), STAGE.recorded(folder)
    if exported is not None:
        return ExportedAs(exported.asked, exported.pt2)
    return NOT_EXPORTED if tuning is None else tuning.export


def unimproved(report: TuneReport) -> str:
    return (
        f"tuning found nothing better on {report.judging_examples} held-out examples, so the "
        "weights are unchanged; give more data or more steps"
    )


def check_dense(
    dense: LoadedModel, identity: ModelIdentity, known: ModelIdentity, batch: Batch, root: Path
) -> None:
    """Raise TuneError if `dense` is not the known network that the run was made from."""
    difference = what_differs(known, identity, dense.module, batch)
    if difference:
        raise TuneError(
            f"{dense.reference.text}: is not the model that {root} was made from, but has "
            f"{difference}; put it back, or name the dense model with --reference"
        )


def _completed(inputs: TuneInputs, dense: LoadedModel) -> TuneOptions:
    """Fill in unset options from the profile, the dense model and its tokenizer."""
    options, profile = inputs.request.options, inputs.profile
    if options.divergence == "auto" and options.pooling is None and options.readout is None:
        options = replace(options, readout=profile.readout)
    if options.divergence == "auto" and profile.objective != "none":
        options = replace(options, divergence=profile.objective)
    if options.pooling is None:
        options = replace(options, pooling=profile.pooling or dense.pooling)
    if options.objective == "mlm" and options.mask_token is None:
        options = replace(options, mask_token=mask_token(dense))
    return options


def _task(reference: str) -> TaskLoss | None:
    if not reference:
        return None
    found = import_object(reference, TuneError)
    if not callable(found):
        raise TuneError(f"{reference}: is not a function; name one called as loss(module, batch)")
    return cast(TaskLoss, found)


def _whitenings(inputs: TuneInputs) -> Mapping[str, Whitening]:
    """Return the metrics of the layers that have moments; others are merged in the plain metric."""
    profile, plan = inputs.profile, inputs.plan
    layers = [x.name for x in plan.layers if not isinstance(x.structure, Dense)]
    held = [name for name in layers if name in profile.moments]
    if len(held) < len(layers) and plan.metric != "plain":
        log.warning("the profile's moments were dropped: adapters are merged in the plain metric")
    return {
        name: layer_whitening(profile[name], plan.metric, profile.moments.get(name))
        for name in held
    }


@main_only
def _keep_teacher(work: Path, inputs: TuneInputs) -> None:
    """Record the teacher's identity; delete the checkpoint if the teacher has changed since."""
    path = work / TEACHER_NAME
    if path.is_file():
        known = from_json(ModelIdentity, read_json(path, DataError), str(path), DataError)
        difference = inputs.differs(known)
        if not difference:
            return
        log.warning("the teacher has changed (%s): the tuning starts again", difference)
        CheckpointFolder(work).path(CHECKPOINT).unlink(missing_ok=True)
    write_json(path, to_json(inputs.dense_identity))


@main_only
def _keep_start(weights: Path, start: Path) -> None:
    if not start.is_file():
        copy_file(weights, start)
