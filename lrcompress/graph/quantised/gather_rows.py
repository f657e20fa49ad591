"""Rows of a table with standard operators: codes and scales are read, then multiplied.

The table is never dequantised as a whole. The arithmetic is written out: ONNX Runtime would take a
DequantizeLinear before the next layer's product for rounded activations.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lrcompress.graph.quantised.product import dtype_of
from lrcompress.graph.quantised.storage import Context
from lrcompress.graph.quantised.unpacking import unpacked_values
from lrcompress.graph.quantised.uses import Use
from lrcompress.graph.quantised.weight_constants import WeightConstants


def gather_rows_(use: Use, constants: WeightConstants, context: Context) -> None:
    node = use.node
    result = node.outputs[0]
    name, ids = result.name, node.inputs[1]
    dtype = dtype_of(node, constants.plain)
    axes = len(ids.shape)

    def add(operator: str, inputs: list[Any], part: str, dtype: Any, **attributes: Any) -> Any:
        return context.node(
            operator, inputs, f"{name}.{part}", before=node, dtype=dtype, attributes=attributes
        )

    def read(table: Any, part: str) -> Any:
        return add("Gather", [table, ids], part, table.dtype)

    def cast(value: Any, part: str) -> Any:
        return value if value.dtype == dtype else add("Cast", [value], part, dtype, to=int(dtype))

    def of_columns(value: Any, part: str) -> Any:
        """Repeat the value of each block for its columns."""
        if constants.per_row:
            last = context.initializer(f"{name}.last", np.array([-1], np.int64))
            return add("Unsqueeze", [value, last], part, dtype)
        if constants.block_count == 1:
            return value
        blocks = context.blocks(constants.columns, constants.block)
        return add("Gather", [value, blocks], part, dtype, axis=-1)

    zeros: Any = None
    if constants.bits == 8:
        codes = read(constants.typed()[0], "codes")
        zeros = constants.typed()[1]
        zeros = None if zeros is None else read(zeros, "zeros")
    else:
        table, stored = constants.packed_rows()
        codes = unpacked_values(
            context, read(table, "codes"), name, bits=constants.bits, axes=axes, stored=stored,
            size=constants.columns, before=node,
        )  # fmt: skip
        packed = constants.packed_zeros()
        if packed is not None:
            zeros = unpacked_values(
                context, read(packed, "zeros"), f"{name}.zeros", bits=constants.bits, axes=axes,
                stored=constants.stored_zeros, size=constants.block_count, before=node,
            )  # fmt: skip
    values = cast(codes, "code_values")
    if zeros is not None:
        values = add(
            "Sub", [values, of_columns(cast(zeros, "zero_values"), "all_zeros")], "centred", dtype
        )
    elif constants.bits < 8:
        middle = np.array(constants.codes.grid.middle, dtype.numpy())
        values = add(
            "Sub", [values, context.initializer(f"{name}.zero", middle, dtype)], "centred", dtype
        )
    scales = of_columns(cast(read(constants.scales(), "scales"), "scale_values"), "all_scales")
    rows = add("Mul", [values, scales], "rows", dtype)
    rows.shape = result.shape
    result.name, rows.name = f"{name}.replaced", name
    result.replace_all_uses_with(rows, replace_graph_outputs=True)
