"""Weights that constant operators compute from our codes when a session opens the file."""

from __future__ import annotations

from functools import partial
from typing import Any

from lrcompress.graph.constant_values import array_of, is_constant, reader, root_name
from lrcompress.graph.expanded.expansion import CODES, Expansion

TRANSPOSED = ".folded."  # in the names of what computes a layer's weight, columns first


def folded_inputs(expansion: Expansion, node: Any) -> None:
    """Give a node that reads such a weight a float initializer."""
    if is_constant(node.outputs[0]):
        return
    for index, value in enumerate(node.inputs):
        if value is None or value.const_value is not None or not is_constant(value):
            continue
        if not root_name(value).endswith(CODES):
            continue
        shape = array_of(value).shape if value.shape is None else tuple(map(int, value.shape))
        weight = expansion.weight(
            value, partial(reader(value), None), shape, node, dtype=value.dtype,
            suffix=".T" if TRANSPOSED in value.name else "",
        )  # fmt: skip
        node.replace_input_with(index, weight)
