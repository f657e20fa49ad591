"""A compressed model on the disk: weights, lrcompress.json, and the files that go with them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from lrcompress import __version__
from lrcompress.atomic import write_atomically
from lrcompress.conversion.conversion import converted_from
from lrcompress.errors import LrcompressError, ModelError
from lrcompress.fingerprint import distinct_state
from lrcompress.formats.files import write_json, write_tensors
from lrcompress.formats.run_json import RECORD_NAME, WEIGHTS_NAME, RunLayer, RunRecord, read_record
from lrcompress.network.batches import Batch
from lrcompress.network.function_sketch import sketch_function
from lrcompress.network.identity import ModelIdentity
from lrcompress.network.made_up_inputs import record_inputs
from lrcompress.paths import expanded
from lrcompress.planning.plan import Plan, PlannedLayer
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.run_model import load_run


def save_compressed(
    module: nn.Module,
    plan: Plan,
    loaded: LoadedModel,
    folder: Path,
    *,
    example: Batch | None = None,
    identity: ModelIdentity | None = None,
    extra: Mapping[str, Any],
) -> None:
    """Write everything that `load` needs, lrcompress.json last: without it there is no run.

    Shared tensors are stored once. `loaded` is what `module` was before, and `identity` what made
    it that; if it was a run itself, its layers come first in the record. Of `example` the names,
    types and sizes are kept, so that the run can be exported and verified later without data.

    Raises:
        LrcompressError: the folder cannot be written.
    """
    earlier: tuple[RunLayer, ...] = ()
    reference = loaded.reference
    if reference.kind == "run":
        assert loaded.folder is not None
        before = read_record(loaded.folder)
        reference, earlier = before.reference, before.layers
    elif reference.kind == "huggingface" and loaded.folder is not None:
        place = {"folder": str(loaded.folder.resolve())}
        reference = replace(reference, details={**reference.details, **place})
    converted = converted_from(module)
    record = RunRecord(
        lrcompress=__version__,
        reference=reference,
        source_fingerprint=plan.model_fingerprint,
        precision=precision(module),
        layers=(*earlier, *(_layer(module, planned) for planned in plan.layers)),
        conversions=converted.conversions,
        unconverted_fingerprint=converted.unconverted_fingerprint,
        source_identity=identity,
        function=None if example is None else sketch_function(module, example),
        inputs={} if example is None else record_inputs(example),
        extra=extra,
    )
    write_tensors(folder / WEIGHTS_NAME, distinct_state(module), {"format": "pt"})
    for companion in loaded.companions:
        assert loaded.folder is not None
        _copy(companion, folder / companion.relative_to(loaded.folder))
    write_json(folder / RECORD_NAME, record.to_json())


def save_tuned(module: nn.Module, example: Batch, folder: Path, extra: Mapping[str, Any]) -> None:
    """Other weights for the run in `folder`, of the same sizes; `extra` joins its record.

    While they are being replaced, the record does not say what they compute: a run that was killed
    there can still be read, with the weights of before or with these.

    Raises:
        LrcompressError: the folder cannot be written, or is no run.
    """
    record = read_record(folder)
    function = sketch_function(module, example)
    write_json(folder / RECORD_NAME, replace(record, function=None).to_json())
    write_tensors(folder / WEIGHTS_NAME, distinct_state(module), {"format": "pt"})
    record = replace(record, function=function, extra={**record.extra, **extra})
    write_json(folder / RECORD_NAME, record.to_json())


def load(
    folder: str | Path, *, trust_remote_code: bool = False, trust_factory: str = ""
) -> nn.Module:
    """The compressed module of a run folder, in eval mode, in the dtype that it was saved in.

    A model made by `pkg.module:factory` needs that module importable, and consent to call it: name
    it as `trust_factory`, unless this process has loaded a model from it by name.

    Raises:
        ModelError, PlanError: the folder is no run, incomplete, damaged, or edited wrongly.
    """
    path = expanded(str(folder), ModelError)
    loaded = load_run(
        path, str(folder), trust_remote_code=trust_remote_code, trust_factory=trust_factory
    )
    return loaded.module


def precision(module: nn.Module) -> str:
    """The dtype of the weights, such as "float32", or "mixed"."""
    kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters()}
    return kinds.pop() if len(kinds) == 1 else "mixed"


def _layer(module: nn.Module, planned: PlannedLayer) -> RunLayer:
    bias = getattr(module.get_submodule(planned.name), "bias", None)
    return RunLayer(planned.name, planned.structure, bias is not None)


def _copy(source: Path, target: Path) -> None:
    if target.exists() and not target.is_symlink() and target.samefile(source):
        return
    try:
        write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))
    except FileNotFoundError as cause:
        raise LrcompressError(f"{source}: vanished while it was copied; run again") from cause
