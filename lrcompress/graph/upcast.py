"""A graph in a wider dtype: bfloat16 in float32, to be run where no bfloat16 product is, and all of
it in float64, to tell what it computes from how it is rounded.

The weights keep the values that they were rounded to, so the graph's structure and its weights are
put to the test; the rounding of what flows between the nodes is not.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any


def upcast(source: Path, target: Path) -> None:
    """Write the graph at `source` with float32 in place of bfloat16, weights beside it."""
    import onnx_ir as ir

    model = ir.load(source)
    widen_(model, (ir.DataType.BFLOAT16,), ir.DataType.FLOAT)
    ir.save(model, target, external_data=target.name + ".data")


def widen_(model: Any, narrow: Collection[Any], wide: Any) -> None:
    """Every value, constant and conversion of an onnx_ir.Model that is `narrow`, to `wide`."""
    import onnx_ir as ir

    kinds = {int(dtype) for dtype in narrow}

    def widened(tensor: Any) -> Any:
        return ir.tensor(tensor.numpy().astype(wide.numpy()), dtype=wide)

    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in narrow:
                value.const_value = widened(value.const_value)
        for value in (*graph.inputs, *graph.initializers.values()):
            _widen_type_(value, narrow, wide)
        for node in graph:
            for value in node.outputs:
                _widen_type_(value, narrow, wide)
            for name, attribute in list(node.attributes.items()):
                if name in ("to", "dtype") and attribute.value in kinds:
                    node.attributes[name] = ir.AttrInt64(name, int(wide))
                elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in narrow:
                    node.attributes[name] = ir.AttrTensor(name, widened(attribute.value))


def _widen_type_(value: Any, narrow: Collection[Any], wide: Any) -> None:
    if value.dtype in narrow:
        value.dtype = wide
