"""The float weights of a graph that is being expanded, and edits of its nodes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrcompress.graph.constant_values import Reader, reader, root_name
from lrcompress.graph.names import unused_name

# Suffixes by which our exporter names the parts of a weight
CODES, SCALES = ".codes", ".scales"
Floats = NDArray[np.float32]


@dataclass(frozen=True)
class ReadWeight:
    """A weight that a node reads in codes."""

    name: str  # of the float initializer in the expanded graph
    operator: str
    unfused: bool = False  # dequantised in every run, though there is a kernel for its product
    by_blocks: bool = False  # a CPU session rounds the product's input to 8 bits by blocks
    # Of a product whose input is rounded in every run: its name before rounding, and the result
    input: str = ""
    output: str = ""


class Expansion:
    """The float weights of one graph, each computed from its codes when it is read."""

    def __init__(self, model: Any, graph: Any) -> None:
        self.model, self.graph = model, graph
        self.found: list[ReadWeight] = []
        self._taken = {
            v.name for n in model.graph.all_nodes() for v in (*n.inputs, *n.outputs) if v
        }
        self._taken |= set(model.graph.initializers)

    def weight(
        self,
        codes: Any,
        make: Callable[[], Floats],
        shape: tuple[int, ...],
        node: Any,
        *,
        dtype: Any = None,
        suffix: str = "",
        unfused: bool = False,
        by_blocks: bool = False,
        rounded: tuple[str, str] = ("", ""),
    ) -> Any:
        """Add an initializer whose values are `make()`, and return it."""
        import onnx_ir as ir

        root = root_name(codes)
        plain = root.removesuffix(CODES) if root.endswith(CODES) else f"{root}.dequantised"
        name = unused_name(plain + suffix, self._taken)
        self._taken.add(name)
        dtype = dtype or ir.DataType.FLOAT
        tensor = ir.LazyTensor(
            lambda: ir.tensor(make().astype(dtype.numpy()), dtype=dtype),
            dtype=dtype,
            shape=ir.Shape(shape),
            name=name,
        )
        value = ir.Value(
            name=name, type=ir.TensorType(dtype), shape=ir.Shape(shape), const_value=tensor
        )
        self.model.graph.register_initializer(value)
        inner = self.graph is not self.model.graph
        names = ("", "") if inner else rounded  # values inside a loop cannot be outputs
        self.found.append(ReadWeight(name, node.op_type, unfused, by_blocks, *names))
        return value

    def replace(
        self, node: Any, output: Any, operator: str, inputs: list[Any], **given: Any
    ) -> None:
        """Compute one output of a node by another operator."""
        import onnx_ir as ir

        made = ir.node(operator, inputs, given, name=f"{output.name}.expanded")
        result = made.outputs[0]
        result.dtype, result.shape = output.dtype, output.shape
        node.graph.insert_before(node, made)
        result.name, output.name = output.name, f"{output.name}.quantised"
        output.replace_all_uses_with(result, replace_graph_outputs=True)

    def product(self, node: Any, output: Any, x: Any, weight: Any, bias: Any = None) -> None:
        """Compute an output of a node as x @ weight + bias."""
        import onnx_ir as ir

        if bias is None:
            self.replace(node, output, "MatMul", [x, weight])
            return
        made = ir.node("MatMul", [x, weight], name=f"{output.name}.unbiased")
        made.outputs[0].name = unused_name(f"{output.name}.unbiased", self._taken)
        made.outputs[0].dtype, made.outputs[0].shape = output.dtype, output.shape
        node.graph.insert_before(node, made)
        self.replace(node, output, "Add", [made.outputs[0], bias])


def number(node: Any, name: str, default: int = 0) -> int:
    return int(node.attributes[name].value) if name in node.attributes else default


def input_of(node: Any, index: int) -> Any:
    return node.inputs[index] if index < len(node.inputs) else None


def reader_or_none(value: Any) -> Reader:
    """Return a function that computes a constant, or None for an absent one."""
    return reader(value) if value is not None else lambda _: None  # type: ignore[return-value]
