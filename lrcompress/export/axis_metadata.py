"""Metadata keys of our ONNX files that describe the axes of the inputs.

    lrcompress.axis_limits  {"sequence": [1, 512]}  smallest and largest size of each free axis, by
                                                    name; null: no upper limit is known
    lrcompress.axis_steps   {"height": 32}          a free axis accepts only multiples of this
    lrcompress.axis_sizes   {"sequence": 128}       size of each free axis in the example
    lrcompress.fixed_axes   {"board": [1]}          axes with a fixed size, by input

A missing key means that nothing is known: another exporter or an earlier version wrote the file.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from lrcompress.export.axis_range import AxisRange

Axes = Mapping[str, Mapping[int, str]]  # input -> axis -> name

BATCH, SEQUENCE = "batch", "sequence"
PREFIX = "lrcompress."
_LARGEST = 2**31 - 1  # larger sizes in a file are invalid
LIMITS, STEPS, SIZES, FIXED = "axis_limits", "axis_steps", "axis_sizes", "fixed_axes"


@dataclass(frozen=True)
class KnownAxis:
    """The sizes that a free axis of a graph accepts, and its size in the example."""

    range: AxisRange
    size: int


def to_metadata(
    known: Mapping[str, KnownAxis], fixed: Mapping[str, Iterable[int]]
) -> dict[str, str]:
    """Return the metadata entries, with keys without the prefix."""
    return {
        LIMITS: json.dumps({name: [a.range.least, a.range.most] for name, a in known.items()}),
        STEPS: json.dumps({n: a.range.step for n, a in known.items() if a.range.step > 1}),
        SIZES: json.dumps({name: axis.size for name, axis in known.items()}),
        FIXED: json.dumps({name: sorted(axes) for name, axes in fixed.items()}),
    }


def known_axes(metadata: Mapping[str, str]) -> dict[str, KnownAxis]:
    """Return the free axes by name; empty if the metadata is missing or malformed."""
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
    """Return the fixed axes by input; None if the metadata is missing or malformed."""
    fixed = _object(metadata, FIXED)
    if fixed is None:
        return None
    return {
        name: tuple(axis for axis in axes if isinstance(axis, int))
        for name, axes in fixed.items()
        if isinstance(axes, list)
    }


def malformed(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the keys that are present but malformed, and therefore ignored."""
    checks: dict[str, Callable[[Any], bool]] = {
        LIMITS: _is_pair,
        STEPS: _is_size,
        SIZES: _is_size,
        FIXED: lambda axes: isinstance(axes, list),
    }
    found = {key: _object(metadata, key) for key in checks if PREFIX + key in metadata}
    return tuple(
        key
        for key, values in found.items()
        if values is None or not all(map(checks[key], values.values()))
    )


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


def _is_pair(value: Any) -> bool:
    """Whether the value is [smallest size, largest size], where null means no upper limit."""
    if not isinstance(value, list) or len(value) != 2 or not _is_size(value[0]):
        return False
    return value[1] is None or _is_size(value[1])


def _is_size(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _LARGEST
