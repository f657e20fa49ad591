"""A graph of quantised weights as one of plain floats.

Codes are replaced by the values that they stand for, and the operators that read them by MatMul
and Gather. Inputs that are rounded in every run (DynamicQuantizeLinear) are no longer rounded, so
the result shows what the graph would compute in exact arithmetic. Graphs of any exporter are taken;
what is not recognised stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from lrcompress.graph.expanded.dequantize_linear import dequantize_linear
from lrcompress.graph.expanded.expansion import Expansion, ReadWeight
from lrcompress.graph.expanded.folded import folded_inputs
from lrcompress.graph.expanded.integer_products import (
    dynamic_quantize_matmul,
    matmul_integer,
    matmul_integer_to_float,
)
from lrcompress.graph.expanded.matmul_nbits import matmul_nbits
from lrcompress.graph.expanded.tables import gather, gather_block_quantized

MICROSOFT = "com.microsoft"
RULES: Mapping[tuple[str, str], Callable[[Expansion, Any], None]] = {
    (MICROSOFT, "MatMulNBits"): matmul_nbits,
    (MICROSOFT, "GatherBlockQuantized"): gather_block_quantized,
    (MICROSOFT, "DynamicQuantizeMatMul"): dynamic_quantize_matmul,
    (MICROSOFT, "MatMulIntegerToFloat"): matmul_integer_to_float,
    ("", "MatMulInteger"): matmul_integer,
    ("", "DequantizeLinear"): dequantize_linear,
    ("", "Gather"): gather,
}


def expand_(model: Any) -> tuple[ReadWeight, ...]:
    """Expand an onnx_ir.Model in place, and return the weights that it held in codes."""
    import onnx_ir.passes.common as passes

    found: list[ReadWeight] = []
    for graph in model.graphs():
        expansion = Expansion(model, graph)
        for node in list(graph):
            RULES.get((node.domain, node.op_type), folded_inputs)(expansion, node)
        found += expansion.found
    if found:
        passes.RemoveUnusedNodesPass()(model)
        passes.TopologicalSortPass()(model)
    return tuple(found)


__all__ = ["RULES", "ReadWeight", "expand_"]
