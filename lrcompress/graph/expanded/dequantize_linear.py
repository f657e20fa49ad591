"""DequantizeLinear of constants as a float weight."""

from __future__ import annotations

from typing import Any

from lrcompress.graph.constant_values import array_of, is_constant, reader
from lrcompress.graph.expanded.expansion import Expansion, number


def dequantize_linear(expansion: Expansion, node: Any) -> None:
    if not is_constant(node.outputs[0]):
        return
    codes, result = node.inputs[0], node.outputs[0]
    shape = tuple(map(int, codes.shape)) if codes.shape is not None else array_of(codes).shape
    if len(shape) < 2:
        return  # a bias
    read = reader(result)
    kernel = _has_kernel(node)
    weight = expansion.weight(
        codes, lambda: read(None), shape, node, dtype=node.inputs[1].dtype,
        suffix=".T" if number(node, "axis", 1) == 0 and len(shape) == 2 else "",
        unfused=kernel,
        by_blocks=kernel,  # the session fuses them to MatMulNBits that rounds
    )  # fmt: skip
    result.replace_all_uses_with(weight, replace_graph_outputs=True)


_PRODUCTS = ("MatMul", "Gemm", "FusedMatMul", "FusedGemm")


def _has_kernel(node: Any) -> bool:
    """Whether the product that reads a DequantizeLinear could be one MatMulNBits."""
    block, axis = number(node, "block_size"), number(node, "axis", 1)
    if block and (block < 16 or block & (block - 1)):
        return False
    uses = list(node.outputs[0].uses())
    transposes = [use for use, _ in uses if use.op_type == "Transpose"]
    uses += [use for one in transposes for use in one.outputs[0].uses()]
    inner = axis if block else 1 - axis  # the axis that products have to sum over

    def sums_over(use: Any, index: int, *, turned: bool) -> bool:
        turned ^= bool(number(use, "transB"))
        return use.op_type in _PRODUCTS and index == 1 and inner == (1 if turned else 0)

    direct = [(use, index, False) for use, index in node.outputs[0].uses()]
    indirect = [(use, index, True) for one in transposes for use, index in one.outputs[0].uses()]
    return any(sums_over(use, i, turned=turned) for use, i, turned in (*direct, *indirect))
