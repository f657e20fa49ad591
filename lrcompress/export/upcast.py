"""A bfloat16 graph in float32, to be run where no bfloat16 product is: ONNX Runtime on the CPU.

The weights keep their bfloat16 values, so the graph's structure and its rounded weights are put to
the test; the rounding of what flows between the nodes is not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any


def upcast(source: Path, target: Path) -> None:
    """Write the graph at `source` with float32 in place of bfloat16, weights beside it."""
    import onnx_ir as ir

    model = ir.load(source)
    for value in model.graph.initializers.values():
        if value.dtype == ir.DataType.BFLOAT16:
            value.const_value = ir.tensor(value.const_value.numpy().astype("float32"))
    for node in model.graph.all_nodes():
        for value in node.outputs:
            _upcast_type_(value)
        for name, attribute in list(node.attributes.items()):
            if name in ("to", "dtype") and attribute.value == ir.DataType.BFLOAT16:
                node.attributes[name] = ir.AttrInt64(name, int(ir.DataType.FLOAT))
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        _upcast_type_(value)
    ir.save(model, target, external_data=target.name + ".data")


def _upcast_type_(value: Any) -> None:
    import onnx_ir as ir

    if value.dtype == ir.DataType.BFLOAT16:
        value.dtype = ir.DataType.FLOAT
