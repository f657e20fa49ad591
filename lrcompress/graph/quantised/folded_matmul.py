"""y = x W^T where the session computes W from its codes once, when it opens the file.

The arithmetic is written out (Cast, Sub, Mul), because sessions compute no DequantizeLinear of
constants in advance. The file stays small; in memory, and in speed, the weight is a dense one.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lrcompress.graph.quantised.product import dtype_of, replace_product_
from lrcompress.graph.quantised.storage import Context
from lrcompress.graph.quantised.uses import Use
from lrcompress.graph.quantised.weight_constants import WeightConstants


def folded_matmul_(use: Use, constants: WeightConstants, context: Context) -> None:
    node = use.node
    product = context.node(
        "MatMul",
        [node.inputs[0], _columns(constants, context)],
        f"{node.outputs[0].name}.product",
        before=node,
        dtype=dtype_of(node, constants.plain),
        shape=node.outputs[0].shape,
    )
    replace_product_(node, product, context)


def _columns(constants: WeightConstants, context: Context) -> Any:
    """Return the transposed weight (columns, rows), computed in float32."""
    import onnx_ir as ir

    single = ir.DataType.FLOAT
    shape = (constants.rows, constants.columns)

    def add(operator: str, inputs: list[Any], part: str, **given: Any) -> Any:
        return context.constant(
            operator, inputs, f"{constants.name}.folded.{part}", dtype=single, **given
        )

    def of_columns(values: Any, part: str) -> Any:
        """Repeat the value of each block for its columns."""
        values = constants.in_dtype(values, single)
        if constants.per_row:
            last = context.initializer(f"{constants.name}.folded.last", np.array([-1], np.int64))
            return add("Unsqueeze", [values, last], part)
        if constants.block_count == 1:
            return values
        blocks = context.blocks(constants.columns, constants.block)
        return add("Gather", [values, blocks], part, attributes={"axis": 1})

    codes, zeros = constants.typed()
    values = constants.in_dtype(codes, single)
    if zeros is not None:
        values = add("Sub", [values, of_columns(zeros, "zeros")], "centred", shape=shape)
    values = add("Mul", [values, of_columns(constants.scales(), "scales")], "values", shape=shape)
    values = add("Transpose", [values], "values.T", attributes={"perm": [1, 0]}, shape=shape[::-1])
    return constants.in_dtype(values, constants.plain.dtype)
