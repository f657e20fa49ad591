"""Products in integers, of inputs that DynamicQuantizeLinear rounds, as MatMul."""

from __future__ import annotations

from typing import Any

from lrcompress.graph.constant_values import array_of, dequantised, is_constant, reader
from lrcompress.graph.expanded.expansion import Expansion, Floats, input_of, reader_or_none


def matmul_integer(expansion: Expansion, node: Any) -> None:
    """DynamicQuantizeLinear, MatMulInteger, Cast, and Mul by both scales."""
    codes, weight, zero, weight_zero = (input_of(node, index) for index in range(4))
    source = codes.producer()
    if source is None or source.op_type != "DynamicQuantizeLinear":
        return
    if zero is not source.outputs[2] or not is_constant(weight):
        return
    scaled = _scaled(node.outputs[0], source.outputs[1])
    if scaled is None:
        return
    result, scales = scaled
    _expand_product(expansion, node, result, source.inputs[0], weight, scales, weight_zero)


def _scaled(sums: Any, scale: Any) -> tuple[Any, Any] | None:
    """Return the product of the sums with both scales, and the weight's scales."""
    uses = list(sums.uses())
    if len(uses) != 1 or uses[0][0].op_type != "Cast":
        return None
    (cast, _), *_ = uses
    products = list(cast.outputs[0].uses())
    if len(products) != 1 or products[0][0].op_type != "Mul":
        return None
    product, index = products[0]
    both = product.inputs[1 - index].producer()
    if both is None or both.op_type != "Mul" or scale not in both.inputs:
        return None
    own = both.inputs[1 - list(both.inputs).index(scale)]
    return (product.outputs[0], own) if is_constant(own) else None


def _expand_product(
    expansion: Expansion,
    node: Any,
    result: Any,
    x: Any,
    codes: Any,
    scales: Any,
    zeros: Any,
    bias: Any = None,
) -> None:
    """Expand x @ (codes (k, n) - zeros) * scales + bias."""
    if not all(is_constant(value) for value in (codes, scales, zeros) if value is not None):
        return

    read_codes, read_scales, read_zeros = reader(codes), reader(scales), reader_or_none(zeros)

    def make() -> Floats:
        parts = read_codes(None), read_scales(None), read_zeros(None)
        return dequantised(*parts, axis=1, block=0)

    shape = tuple(map(int, codes.shape)) if codes.shape is not None else array_of(codes).shape
    names = (x.name, result.name) if bias is None else ("", "")
    weight = expansion.weight(codes, make, shape, node, suffix=".T", rounded=names)
    last = node if result in node.outputs else result.producer()
    expansion.product(last, result, x, weight, bias)


def dynamic_quantize_matmul(expansion: Expansion, node: Any) -> None:
    x, codes, scales = node.inputs[:3]
    zeros, bias = input_of(node, 3), input_of(node, 4)
    _expand_product(expansion, node, node.outputs[0], x, codes, scales, zeros, bias)


def matmul_integer_to_float(expansion: Expansion, node: Any) -> None:
    rounded, codes, scale, scales = node.inputs[:4]
    zero, zeros, bias = (input_of(node, index) for index in (4, 5, 6))
    source = rounded.producer()
    if source is None or source.op_type != "DynamicQuantizeLinear":
        return
    if scale is source.outputs[1] and zero is source.outputs[2]:
        x, result = source.inputs[0], node.outputs[0]
        _expand_product(expansion, node, result, x, codes, scales, zeros, bias)
