"""Structures as JSON: {"type": "low_rank", "rank": 48, "format": "int4/32"}."""

from __future__ import annotations

import dataclasses
from typing import Any

from lrcompress.errors import PlanError
from lrcompress.json_dataclasses import from_json, to_json
from lrcompress.messages import label, shown
from lrcompress.number_formats import parse_format
from lrcompress.structures import STRUCTURES, Structure
from lrcompress.structures.quantised import Quantised

FORMAT = "format"
STORED = "stored"  # the format of a structure that keeps the dtype of the network


def structure_to_json(structure: Structure) -> dict[str, Any]:
    """Return the type's name, the sizes, and all other fields that are not at their default.

    A size whose default is 0 is derived from the others; it is included only if it is set.
    """
    if isinstance(structure, Quantised):
        return {**structure_to_json(structure.structure), FORMAT: structure.format_text}
    assert dataclasses.is_dataclass(structure)
    defaults = {f.name: f.default for f in dataclasses.fields(structure)}
    values = {
        name: value
        for name, value in to_json(structure).items()
        if value != defaults[name] or (value and isinstance(value, int))
    }
    return {"type": structure.type_name, **values}


def structure_from_json(value: object, layer: str) -> Structure:
    """Read the structure of the layer named `layer` from JSON.

    `Structure.check` decides whether it fits the layer.

    Raises:
        PlanError: an unknown type, a missing or unknown field, a field of another type.
    """
    where = f"{label(layer)}: structure"
    if not isinstance(value, dict):
        raise PlanError(f"{where}: must be an object {{...}}, not {shown(value)}; correct it")
    name = value.get("type")
    kind = STRUCTURES.get(name) if isinstance(name, str) else None
    if kind is None:
        known = ", ".join(STRUCTURES)
        raise PlanError(f"{where}: unknown type {shown(name)}; it may be {known}")
    fields = {key: item for key, item in value.items() if key not in ("type", FORMAT)}
    structure = from_json(kind, fields, where, PlanError, strict=True)
    if FORMAT not in value:
        return structure
    return _in_formats(structure, value[FORMAT], label(layer))


def _in_formats(structure: Structure, value: object, layer: str) -> Structure:
    """Return the structure in the formats that a plan names; "stored" means none."""
    if not isinstance(value, str):
        raise PlanError(
            f'{layer}: format must be a text such as "int4/32", not {shown(value)}; correct it'
        )
    parts = [part.strip() for part in value.split(",")]
    if set(parts) == {STORED}:
        return structure
    if STORED in parts:
        raise PlanError(
            f'{layer}: "{STORED}" is for all factors of a layer, not for some of {shown(value)}; '
            "name the floating-point type of that factor: fp32, fp16 or bf16"
        )
    try:
        formats = tuple(map(parse_format, parts))
    except PlanError as cause:
        raise PlanError(f"{layer}: {cause}") from cause
    return Quantised(structure, formats)
