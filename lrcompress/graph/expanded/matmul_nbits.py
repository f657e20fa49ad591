"""com.microsoft.MatMulNBits as MatMul."""

from __future__ import annotations

from typing import Any

import numpy as np

from lrcompress.graph.accuracy_level import ROUNDED
from lrcompress.graph.constant_values import dequantised, is_constant, reader, unpacked
from lrcompress.graph.expanded.expansion import Expansion, Floats, input_of, number, reader_or_none


def matmul_nbits(expansion: Expansion, node: Any) -> None:
    x, codes, scales = node.inputs[:3]
    zeros, groups, bias = (input_of(node, index) for index in (3, 4, 5))
    constants = [value for value in (codes, scales, zeros) if value is not None]
    if groups is not None or not all(map(is_constant, constants)):
        return
    k, n, block = (number(node, name) for name in ("K", "N", "block_size"))
    bits = number(node, "bits", 4)
    blocks = -(-k // block)

    read_codes, read_scales, read_zeros = reader(codes), reader(scales), reader_or_none(zeros)

    def make() -> Floats:
        stored = unpacked(read_codes(None).reshape(n, -1), bits)[:, : blocks * block]
        middles = np.full((n, blocks), 1 << (bits - 1), np.uint8)
        found = read_zeros(None)
        if found is not None:
            packed = found.dtype == np.uint8
            middles = unpacked(found.reshape(n, -1), bits)[:, :blocks] if packed else found
        middles = middles.reshape(n, blocks)
        factors = read_scales(None).reshape(n, blocks)
        return dequantised(stored, factors, middles, axis=1, block=block)[:, :k].T

    dtype = scales.dtype or node.outputs[0].dtype
    weight = expansion.weight(
        codes, make, (k, n), node, dtype=dtype, suffix=".T",
        by_blocks=number(node, "accuracy_level") == ROUNDED,
    )  # fmt: skip
    expansion.product(node, node.outputs[0], x, weight, bias)
