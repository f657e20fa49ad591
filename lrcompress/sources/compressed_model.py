"""A compressed model on disk: the weights, lrcompress.json and the companion files."""

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
from lrcompress.formats.files import write_json
from lrcompress.formats.run_json import RECORD_NAME, WEIGHTS_NAME, RunLayer, RunRecord, read_record
from lrcompress.network.batches import Batch
from lrcompress.network.function_sketch import sketch_function
from lrcompress.network.identity import ModelIdentity
from lrcompress.network.made_up_inputs import record_inputs
from lrcompress.network.other_weights import others_format
from lrcompress.paths import expanded
from lrcompress.planning.plan import Plan, PlannedLayer
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.run_model import load_run
from lrcompress.tensor_files import write_tensors


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
    """Write everything that `load` needs. lrcompress.json is last: without it there is no run.

    Shared tensors are stored once. `loaded` is the source model of `module`, and `identity` its
    identity. If the source is itself a run, its layers come first in the record. The names, dtypes
    and sizes of `example` are stored, so that the run can be exported and verified later without
    data.

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
        others=others_format(module),
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
    """Replace the weights of the run in `folder`, sizes unchanged; merge `extra` into its record.

    During the replacement, the record holds no function sketch. A run that was killed then can
    still be read, with the old weights or the new ones.

    Raises:
        LrcompressError: the folder cannot be written, or is not a run.
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
    """Return the compressed module of a run folder, in eval mode and in its saved dtype.

    For a model made by `pkg.module:factory`, that module must be importable, and the caller must
    consent to the call: pass it as `trust_factory`, unless this process has loaded a model from it
    by name.

    Raises:
        ModelError, PlanError: the folder is not a run, or is incomplete, damaged or badly edited.
    """
    path = expanded(str(folder), ModelError)
    loaded = load_run(
        path, str(folder), trust_remote_code=trust_remote_code, trust_factory=trust_factory
    )
    return loaded.module


def precision(module: nn.Module) -> str:
    """Return the dtype of the weights, such as "float32", or "mixed"."""
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
        raise LrcompressError(f"{source}: was deleted while it was copied; run again") from cause
