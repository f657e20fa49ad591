"""y = x W^T with com.microsoft.MatMulNBits, whose kernels read the codes of 2, 4 or 8 bits."""

from __future__ import annotations

from lrcompress.graph.accuracy_level import FLOAT32, ROUNDED
from lrcompress.graph.quantised.product import dtype_of, replace_product_
from lrcompress.graph.quantised.storage import MICROSOFT, Context
from lrcompress.graph.quantised.uses import Use
from lrcompress.graph.quantised.weight_constants import WeightConstants


def matmul_nbits_(use: Use, constants: WeightConstants, context: Context) -> None:
    node = use.node
    dtype = dtype_of(node, constants.plain)
    zeros = constants.packed_zeros()
    inputs = [node.inputs[0], constants.blocks(), constants.in_dtype(constants.scales(), dtype)]
    product = context.node(
        "MatMulNBits",
        inputs if zeros is None else [*inputs, zeros],
        f"{node.outputs[0].name}.product",
        before=node,
        dtype=dtype,
        shape=node.outputs[0].shape,
        domain=MICROSOFT,
        attributes={
            "K": constants.columns,
            "N": constants.rows,
            "bits": constants.bits,
            "block_size": constants.block,
            "accuracy_level": FLOAT32 if context.options.is_exact(constants.bits) else ROUNDED,
        },
    )
    replace_product_(node, product, context)
