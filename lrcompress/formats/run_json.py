"""lrcompress.json: the structure of each replaced layer, and how to rebuild the rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from lrcompress.conversion.conversion import Conversion
from lrcompress.errors import ModelError, PlanError
from lrcompress.formats.files import read_json
from lrcompress.json_dataclasses import fields_from_json, to_json
from lrcompress.network.function_sketch import FunctionSketch, check_sketch
from lrcompress.network.identity import ModelIdentity, check_identity
from lrcompress.network.made_up_inputs import InputRecord, check_inputs
from lrcompress.paths import expanded
from lrcompress.structures import Structure
from lrcompress.structures.serial import structure_from_json, structure_to_json

RECORD_NAME = "lrcompress.json"
WEIGHTS_NAME = "model.safetensors"
SCHEMA_VERSION = 1


@dataclass(frozen=True)
class ModelReference:
    """Where a model came from. With the run folder's companions it rebuilds the empty module."""

    kind: Literal["huggingface", "factory", "run"]
    text: str  # as the user wrote it
    details: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def place(self) -> str:
        """The path as the user wrote it, if it exists; else the model's folder at that time."""
        here = expanded(self.text, ModelError).exists()
        return self.text if here else self.details.get("folder", self.text)


@dataclass(frozen=True)
class RunLayer:
    """One planned layer. `bias`: whether its replacement has one, the original's or its own."""

    name: str
    structure: Structure
    bias: bool


@dataclass(frozen=True)
class RunRecord:
    """The content of lrcompress.json.

    Layers are in the order of replacement; a later one may lie inside an earlier one.
    """

    lrcompress: str  # version
    reference: ModelReference  # to the dense model
    source_fingerprint: str  # of the module that was compressed
    precision: str  # dtype of the weights, or "mixed"
    layers: tuple[RunLayer, ...]
    others: str = "fp32"  # format in which a graph stores weights that no layer holds
    conversions: tuple[Conversion, ...] = ()  # made before the layers were replaced
    unconverted_fingerprint: str = ""  # of the module before the conversions, if there are any
    source_identity: ModelIdentity | None = None  # of the module that was compressed
    function: FunctionSketch | None = None  # of the compressed module
    inputs: Mapping[str, InputRecord] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        return {
            "schema_version": self.schema_version,  # first in the file
            **to_json(self),
            "layers": [
                {**to_json(layer), "structure": structure_to_json(layer.structure)}
                for layer in self.layers
            ],
        }


def read_record(folder: Path) -> RunRecord:
    """Read the record of a run folder.

    Raises:
        ModelError: missing, malformed, or of another schema version.
        PlanError: a layer's structure is malformed; the message names the layer.
    """
    path = folder / RECORD_NAME
    value = read_json(path)
    version = value.get("schema_version")
    if version != SCHEMA_VERSION or isinstance(version, bool):
        raise ModelError(
            f"{path}: schema_version is {version!r}, this lrcompress reads {SCHEMA_VERSION}; "
            "use the version that wrote it, or compress again"
        )
    head = fields_from_json(RunRecord, value, f"{path}:", ModelError, apart=("layers", "extra"))
    layers, extra = value.get("layers"), value.get("extra", {})
    if not isinstance(layers, list) or not isinstance(extra, dict):
        raise ModelError(f"{path}: needs a list of layers and an object extra; compress again")
    check_inputs(head.get("inputs", {}), f"{path}: inputs", ModelError)
    if head.get("source_identity") is not None:
        check_identity(head["source_identity"], f"{path}: source_identity", ModelError)
    if head.get("function") is not None:
        check_sketch(head["function"], f"{path}: function", ModelError)
    parsed = tuple(_layer(item, f"{path}: layers[{i}]") for i, item in enumerate(layers))
    return RunRecord(layers=parsed, extra=extra, **head)


def _layer(value: object, where: str) -> RunLayer:
    head = fields_from_json(RunLayer, value, where, ModelError, apart=("structure",))
    assert isinstance(value, dict)  # ensured by fields_from_json
    try:
        structure = structure_from_json(value.get("structure"), head["name"])
    except PlanError as cause:
        raise PlanError(f"{where}: {cause}") from cause
    return RunLayer(structure=structure, **head)
