"""y = x W^T as DequantizeLinear and MatMul, which the session fuses to MatMulNBits.

It fuses blocks along the first axis of the transposed weight, of sizes that MatMulNBits takes, and
scales of whole rows.
"""

from __future__ import annotations

from lrcompress.graph.quantised.product import dtype_of, replace_product_
from lrcompress.graph.quantised.storage import Context
from lrcompress.graph.quantised.uses import Use
from lrcompress.graph.quantised.weight_constants import WeightConstants


def dequantised_matmul_(use: Use, constants: WeightConstants, context: Context) -> None:
    node = use.node
    dtype = dtype_of(node, constants.plain)
    product = context.node(
        "MatMul",
        [node.inputs[0], constants.dequantised_columns()],
        f"{node.outputs[0].name}.product",
        before=node,
        dtype=dtype,
        shape=node.outputs[0].shape,
    )
    replace_product_(node, product, context)
