"""Remove masks that allow everything.

Vision models create one for their patches, text models if they are given none. Such a mask adds 0
to every score and multiplies every result by 1. Only values computed from a boolean constant are
followed, so no weight is ever removed, even if it is zero or one.
"""

from __future__ import annotations

from itertools import permutations
from typing import Any

from lrcompress.graph.rewrites.rewrite import RewriteResult

_KEEPS_VALUE = ("Expand", "Unsqueeze", "Squeeze", "Reshape", "Transpose", "ReduceMax", "ReduceMin",
                "Cast", "CastLike")  # fmt: skip


def trivial_masks_(model: Any) -> RewriteResult:
    known: dict[int, float] = {}  # id of a value -> the number in all of its elements
    for value in model.graph.initializers.values():
        if value.dtype.name == "BOOL" and value.const_value.size > 0:
            entries = value.const_value.numpy()
            if entries.min() == entries.max():
                known[id(value)] = float(entries.min())
    changes = 0
    for node in model.graph:
        number = _filled_with(node, known)
        if number is not None:
            known[id(node.outputs[0])] = number
        elif node.op_type in ("Add", "Mul"):
            changes += _skipped_(node, known)
    return RewriteResult("trivial_masks", changes)


def _filled_with(node: Any, known: dict[int, float]) -> float | None:
    first = known.get(id(node.inputs[0])) if node.inputs else None
    if first is None:
        return None
    if node.op_type in _KEEPS_VALUE:
        return first
    if node.op_type == "Where":
        chosen = node.inputs[1 if first else 2]
        if chosen.const_value is not None and chosen.const_value.size == 1:
            return float(chosen.const_value.numpy().reshape(-1)[0])
    return None


def _skipped_(node: Any, known: dict[int, float]) -> bool:
    """Replace x + 0 or x * 1 by x if the shapes are equal; return whether that was done."""
    neutral = 0.0 if node.op_type == "Add" else 1.0
    result = node.outputs[0]
    if result.is_graph_output():
        return False
    for other, kept in permutations(node.inputs):
        if known.get(id(other)) == neutral and _same_shape(kept, result):
            result.replace_all_uses_with(kept)
            return True
    return False


def _same_shape(a: Any, b: Any) -> bool:
    if a.shape is None or b.shape is None or len(a.shape) != len(b.shape):
        return False
    return all(
        m == n and getattr(m, "value", m) is not None for m, n in zip(a.shape, b.shape, strict=True)
    )
