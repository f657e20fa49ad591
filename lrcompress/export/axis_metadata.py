"""What an ONNX file of ours tells of its inputs' axes, under keys of its metadata.

    lrcompress.axis_limits  {"sequence": [1, 512]}  sizes of each free axis, by its name; null: no
                                                    upper limit is known
    lrcompress.axis_steps   {"height": 32}          a free axis takes multiples of this only
    lrcompress.axis_sizes   {"sequence": 128}       of each free axis in the example
    lrcompress.fixed_axes   {"board": [1]}          axes that have one size, by input

A file without a key was written by another exporter or an earlier version: nothing is known.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lrcompress.export.axis_range import AxisRange

Axes = Mapping[str, Mapping[int, str]]  # input -> axis -> name

BATCH, SEQUENCE = "batch", "sequence"
PREFIX = "lrcompress."
_LARGEST = 2**31 - 1  # no axis has more; a file that says so makes no sense
LIMITS, STEPS, SIZES, FIXED = "axis_limits", "axis_steps", "axis_sizes", "fixed_axes"


@dataclass(frozen=True)
class KnownAxis:
    """A free axis of a graph, of which is known what it takes and what the example had."""

    range: AxisRange
    size: int


def to_metadata(
    known: Mapping[str, KnownAxis], fixed: Mapping[str, Iterable[int]]
) -> dict[str, str]:
    """The keys, without their prefix, and their values."""
    return {
        LIMITS: json.dumps({name: [a.range.least, a.range.most] for name, a in known.items()}),
        STEPS: json.dumps({n: a.range.step for n, a in known.items() if a.range.step > 1}),
        SIZES: json.dumps({name: axis.size for name, axis in known.items()}),
        FIXED: json.dumps({name: sorted(axes) for name, axes in fixed.items()}),
    }


def known_axes(metadata: Mapping[str, str]) -> dict[str, KnownAxis]:
    """The free axes of a graph by name; of a file that tells nothing, or no sense, none."""
    limits, steps, sizes = (_object(metadata, key) for key in (LIMITS, STEPS, SIZES))
    if limits is None or steps is None or sizes is None:
        return {}
    found = {}
    for name, size in sizes.items():
        least, most = _pair(limits.get(name))
        step = steps.get(name, 1)
        if _is_size(size) and _is_size(step):
            found[name] = KnownAxis(AxisRange(least, most, step), size)
    return found


def fixed_axes(metadata: Mapping[str, str]) -> dict[str, tuple[int, ...]] | None:
    """Axes of one size by input, as far as the exporter told; None where it told nothing."""
    fixed = _object(metadata, FIXED)
    if fixed is None:
        return None
    return {
        name: tuple(axis for axis in axes if isinstance(axis, int))
        for name, axes in fixed.items()
        if isinstance(axes, list)
    }


def _object(metadata: Mapping[str, str], key: str) -> dict[str, Any] | None:
    try:
        value = json.loads(metadata.get(PREFIX + key, "null"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _pair(value: Any) -> tuple[int, int | None]:
    if not isinstance(value, list) or len(value) != 2 or not _is_size(value[0]):
        return 1, None
    return value[0], value[1] if _is_size(value[1]) and value[1] >= value[0] else None


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST
