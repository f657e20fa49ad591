"""Rows of a table with com.microsoft.GatherBlockQuantized, which dequantises what it reads."""

from __future__ import annotations

import numpy as np

from lrcompress.graph.quantised.product import dtype_of
from lrcompress.graph.quantised.storage import MICROSOFT, Context
from lrcompress.graph.quantised.uses import Use
from lrcompress.graph.quantised.weight_constants import WeightConstants


def gather_block_quantized_(use: Use, constants: WeightConstants, context: Context) -> None:
    node = use.node
    result = node.outputs[0]
    dtype = dtype_of(node, constants.plain)
    table, stored = constants.packed_rows()
    zeros = constants.packed_zeros()
    inputs = [table, node.inputs[1], constants.in_dtype(constants.scales(), dtype)]
    sizes = list(result.shape[:-1]) if result.shape is not None else None
    rows = context.node(
        "GatherBlockQuantized",
        inputs if zeros is None else [*inputs, zeros],
        f"{result.name}.rows",
        before=node,
        dtype=dtype,
        shape=None if sizes is None else [*sizes, stored],
        domain=MICROSOFT,
        attributes={
            "gather_axis": 0,
            "quantize_axis": 1,
            "block_size": constants.block,
            "bits": constants.bits,
        },
    )
    if stored != constants.columns:  # the table is padded to whole bytes or blocks
        begin, end, axis = (
            context.initializer(f"{result.name}.{part}", np.array([number], np.int64))
            for part, number in (("start", 0), ("end", constants.columns), ("axis", -1))
        )
        rows = context.node(
            "Slice", [rows, begin, end, axis], f"{result.name}.cut", before=node, dtype=dtype,
            shape=result.shape,
        )  # fmt: skip
    name = result.name
    result.name, rows.name = f"{name}.replaced", name
    result.replace_all_uses_with(rows, replace_graph_outputs=True)
