"""A product with a weight that is computed from codes by constant operators."""

from __future__ import annotations

from typing import Any

from lrcompress.graph.constant_values import array_of, is_constant, reader, root_name
from lrcompress.graph.expanded.expansion import CODES, Expansion, input_of


def matmul(expansion: Expansion, node: Any) -> None:
    """Give a MatMul whose right-hand side is computed from our codes a float initializer."""
    value = input_of(node, 1)
    if value is None or value.const_value is not None or not root_name(value).endswith(CODES):
        return
    if not is_constant(value):
        return
    shape = array_of(value).shape if value.shape is None else tuple(map(int, value.shape))
    read = reader(value)
    weight = expansion.weight(
        value, lambda: read(None), shape, node, dtype=value.dtype, suffix=".T"
    )
    node.replace_input_with(1, weight)
