"""Replace a MatMul or Gemm by a product of another operator and, for a bias, an Add."""

from __future__ import annotations

from typing import Any

from lrcompress.graph.quantised.storage import Context


def replace_product_(node: Any, product: Any, context: Context) -> None:
    """Make all who read the node's output read `product`, plus the bias of a Gemm."""
    result = node.outputs[0]
    name = result.name
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        product = context.node(
            "Add", [product, node.inputs[2]], f"{name}.biased", before=node, dtype=result.dtype,
            shape=result.shape,
        )  # fmt: skip
    result.name, product.name = f"{name}.replaced", name
    result.replace_all_uses_with(product, replace_graph_outputs=True)


def dtype_of(node: Any, weight: Any) -> Any:
    """Return the dtype in which a node computes; the weight's if the graph does not tell."""
    return node.outputs[0].dtype or weight.dtype
