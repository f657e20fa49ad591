"""y = x W^T in integers: x is rounded to uint8 in every run (DynamicQuantizeLinear).

Layers that read the same x share its rounding. The session fuses the nodes of each layer to
MatMulIntegerToFloat, or all of them to DynamicQuantizeMatMul.
"""

from __future__ import annotations

from typing import Any

from lrcompress.graph.quantised.product import dtype_of, replace_product_
from lrcompress.graph.quantised.storage import Context
from lrcompress.graph.quantised.uses import Use
from lrcompress.graph.quantised.weight_constants import WeightConstants


def dynamic_matmul_(use: Use, constants: WeightConstants, context: Context) -> None:
    import onnx_ir as ir

    node, single = use.node, ir.DataType.FLOAT
    name, shape = node.outputs[0].name, node.outputs[0].shape

    def add(operator: str, inputs: list[Any], part: str, dtype: Any, **facts: Any) -> Any:
        return context.node(operator, inputs, f"{name}.{part}", before=node, dtype=dtype, **facts)

    codes, scale, zero = context.quantised(node.inputs[0], node)
    to_float = {"to": int(single)}
    sums = add(
        "MatMulInteger", [codes, constants.typed_columns()[0], zero], "sums", ir.DataType.INT32,
        shape=shape,
    )  # fmt: skip
    sums = add("Cast", [sums], "float", single, shape=shape, attributes=to_float)
    scales = constants.in_dtype(constants.scales(), single)
    scales = add("Mul", [scale, scales], "scales", single, shape=[constants.rows])
    product = add("Mul", [sums, scales], "product", single, shape=shape)
    dtype = dtype_of(node, constants.plain)
    if dtype != single:
        product = add("Cast", [product], "cast", dtype, shape=shape, attributes={"to": int(dtype)})
    replace_product_(node, product, context)
