"""What a file of ours notes of itself in its metadata. What is malformed there is not known."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import onnx

from lrcompress.export.check import Subject

_PREFIX = "lrcompress."


def longest_sequence(subject: Subject) -> int | None:
    """Positions that the network takes: noted by our exporter, or in its configuration."""
    limits = _noted(subject.graph, "axis_limits").get("sequence")
    if isinstance(limits, list) and len(limits) == 2 and _is_size(limits[1]):
        return int(limits[1])
    positions = getattr(getattr(subject.module, "config", None), "max_position_embeddings", None)
    return positions - 2 if isinstance(positions, int) else None  # some tables start at two


def fixed_on_purpose(graph: onnx.ModelProto) -> Mapping[str, frozenset[int]]:
    """Axes of each input that the export gave one size and said so."""
    return {
        name: frozenset(axis for axis in axes if isinstance(axis, int))
        for name, axes in _noted(graph, "fixed_axes").items()
        if isinstance(axes, list)
    }


def unreadable(graph: onnx.ModelProto) -> tuple[str, ...]:
    """Notes that are there and malformed."""
    held = {entry.key for entry in graph.metadata_props}
    limits = _noted(graph, "axis_limits")
    wrong = {
        "axis_limits": not all(_is_pair(pair) for pair in limits.values()),
        "fixed_axes": not all(isinstance(v, list) for v in _noted(graph, "fixed_axes").values()),
    }
    return tuple(key for key, bad in wrong.items() if bad and _PREFIX + key in held)


def _is_pair(value: object) -> bool:
    """The least size and the largest; None: no limit."""
    return (
        isinstance(value, list)
        and len(value) == 2
        and _is_size(value[0])
        and (value[1] is None or _is_size(value[1]))
    )


def _noted(graph: onnx.ModelProto, key: str) -> dict[str, Any]:
    held = {entry.key: entry.value for entry in graph.metadata_props}
    try:
        value = json.loads(held.get(_PREFIX + key, "{}"))
    except (ValueError, RecursionError):
        return {"": None}
    return value if isinstance(value, dict) else {"": None}


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1
