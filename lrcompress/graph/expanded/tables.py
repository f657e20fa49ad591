"""Tables of codes whose rows are read: GatherBlockQuantized, or Gather and arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np

from lrcompress.graph.constant_values import array_of, dequantised, is_constant, reader, unpacked
from lrcompress.graph.expanded.expansion import Expansion, Floats, input_of, number, reader_or_none


def gather_block_quantized(expansion: Expansion, node: Any) -> None:
    codes, ids, scales = node.inputs[:3]
    zeros = input_of(node, 3)
    constants = [value for value in (codes, scales, zeros) if value is not None]
    axis, block = number(node, "quantize_axis", 1), number(node, "block_size", 128)
    bits = number(node, "bits", 4)
    if not all(map(is_constant, constants)) or len(codes.shape) != 2 or axis % 2 != 1:
        return
    if number(node, "gather_axis"):
        return
    in_bytes = codes.dtype.name == "UINT8"
    rows, width = int(codes.shape[0]), int(codes.shape[1]) * (8 // bits if in_bytes else 1)
    cuts = [use for use, _ in node.outputs[0].uses()]
    end = _end_of_cut(cuts[0]) if len(cuts) == 1 else None
    size = width if end is None else min(end, width)

    read_codes, read_scales, read_zeros = reader(codes), reader(scales), reader_or_none(zeros)

    def make() -> Floats:
        stored, factors, middles = read_codes(None), read_scales(None), read_zeros(None)
        stored = unpacked(stored, bits) if in_bytes else stored
        blocks = factors.shape[1]
        if middles is not None and in_bytes:
            middles = unpacked(middles, bits)[:, :blocks]
        elif middles is None and in_bytes:
            middles = np.full((rows, blocks), 1 << (bits - 1), np.uint8)
        return dequantised(stored, factors, middles, axis=1, block=block)[:, :size]

    table = expansion.weight(codes, make, (rows, size), node, dtype=scales.dtype)
    last = node.outputs[0] if end is None else cuts[0].outputs[0]
    expansion.replace(node, last, "Gather", [table, ids], axis=0)


def _end_of_cut(node: Any) -> int | None:
    """Return the size that a Slice from 0 leaves of the last axis."""
    if node.op_type != "Slice" or not all(map(is_constant, node.inputs[1:])):
        return None
    if len(node.inputs) != 4:
        return None
    start, end, axis = (int(array_of(value).item()) for value in node.inputs[1:])
    return end if start == 0 and axis == -1 else None


# Operators between the codes of gathered rows and the product with their scales
_BETWEEN = ("Unsqueeze", "BitShift", "BitwiseAnd", "Reshape", "Slice", "Cast", "Sub")


def gather(expansion: Expansion, node: Any) -> None:
    """Rows of codes that are multiplied by rows of scales, or by a single scale."""
    codes, ids = node.inputs
    if number(node, "axis") or not is_constant(codes) or len(codes.shape or ()) != 2:
        return
    if codes.dtype.name not in ("INT8", "UINT8") or ids.shape is None or is_constant(ids):
        return
    value = node.outputs[0]
    while True:
        uses = list(value.uses())
        if len(uses) != 1:
            return
        use = uses[0][0]
        value = use.outputs[0]
        if use.op_type in ("Mul", "DequantizeLinear"):
            break
        if use.op_type not in _BETWEEN:
            return
    rows, axes = int(codes.shape[0]), len(ids.shape)
    if not is_constant(value, ids):
        return
    read = reader(value, ids)
    size = read(np.zeros((1,) * axes, np.int64)).shape[-1]

    def make() -> Floats:
        every = np.arange(rows).reshape(rows, *[1] * (axes - 1))
        return read(every).reshape(rows, size)

    table = expansion.weight(codes, make, (rows, size), node, dtype=value.dtype)
    expansion.replace(use, value, "Gather", [table, ids], axis=0)
