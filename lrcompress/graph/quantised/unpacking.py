"""Codes of fewer than 8 bits that are packed into bytes, unpacked by standard operators."""

from __future__ import annotations

from typing import Any

import numpy as np

from lrcompress.graph.quantised.storage import Context


def unpacked_values(
    context: Context,
    value: Any,
    name: str,
    *,
    bits: int,
    axes: int,
    stored: int,
    size: int,
    before: Any,
) -> Any:
    """Return the codes along the last axis of `value`, uint8, one per byte.

    axes: those before the last one, which may have any size.
    stored: codes along the last axis of `value`, padding included; size: those that are returned.
    """
    import onnx_ir as ir

    def add(operator: str, inputs: list[Any], part: str, dtype: Any, **attributes: Any) -> Any:
        return context.node(
            operator, inputs, f"{name}.{part}", before=before, dtype=dtype, attributes=attributes
        )

    def numbers(part: str, values: Any, dtype: Any) -> Any:
        return context.initializer(f"{name}.{part}", np.array(values, dtype))

    byte = ir.DataType.UINT8
    if bits < 8:
        value = add("Unsqueeze", [value, numbers("last", [-1], np.int64)], "bytes", byte)
        shifts = numbers("shifts", np.arange(0, 8, bits), np.uint8)
        value = add("BitShift", [value, shifts], "shifted", byte, direction="RIGHT")
        value = add("BitwiseAnd", [value, numbers("mask", (1 << bits) - 1, np.uint8)], "low", byte)
        shape = numbers("shape", [*[0] * axes, stored], np.int64)
        value = add("Reshape", [value, shape], "unpacked", byte)
    if stored != size:
        begin, end, axis = (
            numbers(part, [number], np.int64)
            for part, number in (("begin", 0), ("end", size), ("axis", -1))
        )
        value = add("Slice", [value, begin, end, axis], "cut", byte)
    return value
