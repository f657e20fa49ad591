"""Convert a graph to a wider dtype.

bfloat16 becomes float32, to run where bfloat16 products are not supported. All floating-point
dtypes become float64, to separate errors from rounding. The weights keep their rounded values. So
running the result tests the graph's structure and weights, but not the rounding of activations.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any


def upcast(source: Path, target: Path) -> None:
    """Write the graph at `source` to `target`, with float32 for bfloat16 and external weights."""
    import onnx_ir as ir

    model = ir.load(source)
    widen_(model, (ir.DataType.BFLOAT16,), ir.DataType.FLOAT)
    ir.save(model, target, external_data=target.name + ".data")


def widen_(model: Any, narrow: Collection[Any], wide: Any) -> None:
    """Change the dtypes `narrow` to `wide` in all values, constants and casts of the model."""
    import onnx_ir as ir

    kinds = {int(dtype) for dtype in narrow}

    def widened(tensor: Any) -> Any:
        return ir.tensor(tensor.numpy().astype(wide.numpy()), dtype=wide)

    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None and value.const_value.dtype in narrow:
                value.const_value = widened(value.const_value)
        results = (value for node in graph for value in node.outputs)
        for value in (*graph.inputs, *graph.initializers.values(), *results):
            if value.dtype in narrow:
                value.dtype = wide
        for node in graph:
            for name, attribute in list(node.attributes.items()):
                if name in ("to", "dtype") and attribute.value in kinds:
                    node.attributes[name] = ir.AttrInt64(name, int(wide))
                elif attribute.type == ir.AttributeType.TENSOR and attribute.value.dtype in narrow:
                    node.attributes[name] = ir.AttrTensor(name, widened(attribute.value))
