"""Loading of a run folder: architecture, replaced layers, and the weights as stored."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

from lrcompress.compression.replace import install_
from lrcompress.conversion.convert import replay_
from lrcompress.errors import LrcompressError, ModelError, PlanError
from lrcompress.formats.run_json import (
    RECORD_NAME,
    WEIGHTS_NAME,
    ModelReference,
    RunLayer,
    RunRecord,
    read_record,
)
from lrcompress.formats.weights import fill_, opened_safetensors
from lrcompress.layers import LayerSpec, describe
from lrcompress.messages import label
from lrcompress.network.function_sketch import function_differs
from lrcompress.network.other_weights import OTHER_FORMATS, remember_others_
from lrcompress.sources.bounds import Size
from lrcompress.sources.factory import call_factory, permit_factory
from lrcompress.sources.huggingface import empty_module
from lrcompress.sources.loaded_model import LoadedModel, ready_
from lrcompress.sources.sidecar_files import UNTRUSTED, companions, names_own_code, pooling
from lrcompress.structures import Dense


def load_run(
    folder: Path, text: str, *, trust_remote_code: bool = False, trust_factory: str = ""
) -> LoadedModel:
    """Load the compressed module in the dtype of its file, in eval mode.

    A factory's model is rebuilt by calling the factory, which must be importable and trusted by
    its name. Code in the folder needs `trust_remote_code`. Otherwise the folder is only data.

    Raises:
        ModelError, PlanError: the folder is incomplete, damaged, edited wrongly or unsafe.
    """
    record = read_record(folder)
    if record.others not in OTHER_FORMATS:
        raise ModelError(
            f"{folder / RECORD_NAME}: others: {label(record.others)} is not one of "
            f"{', '.join(OTHER_FORMATS)}; undo the edit"
        )
    if "remote_code" in record.reference.details and not trust_remote_code:
        raise ModelError(f"{folder}: {UNTRUSTED}")
    if record.reference.kind == "factory":
        permit_factory(record.reference.text, trust_factory, folder / RECORD_NAME)
    own_code = trust_remote_code and names_own_code(folder)
    weights = folder / WEIGHTS_NAME
    size: Size | None = None
    if weights.is_file():  # a missing file is reported when it is read
        with opened_safetensors(weights):
            size = Size.of_files([weights])
    module = rebuild_empty(record.reference, folder, size)
    try:
        replay_(module, record.conversions)
    except ModelError as cause:
        raise ModelError(f"{folder / RECORD_NAME}: {cause}") from cause
    _install_all_(module, record.layers, folder)
    with opened_safetensors(weights) as file:
        fill_(module, file.keys(), file.get_tensor, weights, keep_dtype=True)
    module = ready_(module, weights)
    _check_function(module, record, folder)
    remember_others_(module, record.others)
    return LoadedModel(
        module=module,
        reference=ModelReference("run", text, record.reference.details),
        companions=companions(folder, own_code=own_code),
        folder=folder,
        own_code=own_code,
        pooling=pooling(folder),
        inputs=record.inputs,
    )


def rebuild_empty(reference: ModelReference, folder: Path, size: Size | None = None) -> nn.Module:
    """Build the module that `reference` names, from config.json in `folder` or from its factory.

    Its weights are arbitrary. size: that of the compressed weights that will fill it.

    Raises:
        ModelError: the config or factory is missing or broken.
    """
    if reference.kind == "huggingface":
        return empty_module(reference, folder, size)
    if reference.kind == "factory":
        return call_factory(reference.text)
    raise ModelError(
        f"{folder}: its record names a run as its source instead of the dense model; undo the edit"
    )


def _check_function(module: nn.Module, record: RunRecord, folder: Path) -> None:
    """Raise ModelError if the module computes something else than when it was written."""
    if record.function is None:
        return
    change = function_differs(record.function, module)
    if change is not None:
        what = "the factory" if record.reference.kind == "factory" else "config.json or the code"
        raise ModelError(
            f"{folder}: computes something else than when it was written ({change}): {what} of "
            f"{record.reference.text} has changed since; undo that, or compress again"
        )


def _install_all_(module: nn.Module, layers: tuple[RunLayer, ...], folder: Path) -> None:
    specs: dict[str, LayerSpec] = {}
    for layer in layers:
        if isinstance(layer.structure, Dense):
            continue
        if layer.name not in specs:  # it may be inside a layer that was replaced before it
            specs = {spec.name: spec for spec in describe(module, formats=True).layers}
        spec = specs.get(layer.name)
        if spec is None:
            raise ModelError(
                f"{folder / RECORD_NAME}: the model has no layer {label(layer.name)}; the "
                "folder belongs to another version of the model's code"
            )
        try:
            layer.structure.check(spec)
        except PlanError as cause:
            raise PlanError(f"{folder / RECORD_NAME}: {cause}") from cause
        try:
            factors = layer.structure.empty_factors(spec)
            bias = torch.zeros(spec.groups * spec.out_features) if layer.bias else None
            install_(module, spec, layer.structure, factors, bias)
        except LrcompressError:
            raise
        except RuntimeError as cause:  # sizes that no tensor can have
            raise ModelError(
                f"{folder / RECORD_NAME}: {label(layer.name)} cannot be rebuilt as "
                f"{layer.structure}; undo the edit"
            ) from cause
