"""What the recipes share: the options, and the nodes that several weights use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lrcompress.graph.names import unused_name

Operators = Literal["contrib", "standard"]
AccuracyLevel = Literal[0, 1, 4]
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class StorageOptions:
    """operators: "contrib" has ONNX Runtime's own operators; "standard" has ONNX's alone.

    accuracy_level: of MatMulNBits; 4 rounds its inputs to 8 bits by blocks, 1 computes in float32
        (0 lets ONNX Runtime choose, which is float32). On a CPU only 4 has fast kernels for 2 and 8
        bits, and for 4 bits it is faster at few rows. Dense MiniLM, layers in int8/128, one thread:
        one token takes .27 ms at 4 and 34 ms at 1, 128 tokens 40 and 95 ms; the mean cosine of its
        embeddings to the dense ones is .9991 and .9998. In int4/32: .26 and .67, 50 and 55 ms;
        .97366 and .97370.
    """

    operators: Operators = "contrib"
    accuracy_level: AccuracyLevel = 4


class Context:
    """A graph that is being rewritten."""

    def __init__(self, model: Any, options: StorageOptions) -> None:
        self.model = model
        self.options = options
        self._quantised: dict[Any, tuple[Any, Any, Any]] = {}
        nodes = list(model.graph.all_nodes())
        values = (v for n in nodes for v in (*n.inputs, *n.outputs) if v is not None)
        self._taken = {v.name for v in values} | set(model.graph.initializers)

    def initializer(self, name: str, array: NDArray[Any], dtype: Any = None) -> Any:
        """Add an initializer and return its value. dtype: of onnx_ir; None: the array's."""
        import onnx_ir as ir

        name = self._unused(name)
        tensor = ir.tensor(np.asarray(array, order="C"), dtype=dtype, name=name)
        value = ir.Value(
            name=name,
            type=ir.TensorType(tensor.dtype),
            shape=ir.Shape(array.shape),
            const_value=tensor,
        )
        self.model.graph.register_initializer(value)
        return value

    def constant(self, operator: str, inputs: Sequence[Any], name: str, **facts: Any) -> Any:
        """Add a node that reads only constants, at the start of the graph."""
        return self.node(operator, inputs, name, before=self.model.graph[0], **facts)

    def node(
        self,
        operator: str,
        inputs: Sequence[Any],
        name: str,
        *,
        before: Any,
        dtype: Any,
        shape: Any = None,
        attributes: Mapping[str, Any] | None = None,
        domain: str = "",
    ) -> Any:
        """Add a node before another one and return its first output."""
        import onnx_ir as ir

        name = self._unused(name)
        made = ir.node(operator, list(inputs), dict(attributes or {}), domain=domain, name=name)
        result = made.outputs[0]
        result.name, result.dtype = name, dtype
        if shape is not None:
            result.shape = ir.Shape(list(shape))
        if domain:
            self.model.opset_imports.setdefault(domain, 1)
        before.graph.insert_before(before, made)
        return result

    def _unused(self, name: str) -> str:
        name = unused_name(name, self._taken)
        self._taken.add(name)
        return name

    def rename_(self, value: Any, name: str) -> None:
        self._taken.discard(value.name)
        value.name = self._unused(name)

    def quantised(self, x: Any, before: Any) -> tuple[Any, Any, Any]:
        """Return x in uint8, its scale and its zero point; one node for all who read x."""
        import onnx_ir as ir

        if x not in self._quantised:
            name, single = x.name, x
            if x.dtype not in (ir.DataType.FLOAT, None):
                single = self.node(
                    "Cast", [x], f"{name}.single", before=before, dtype=ir.DataType.FLOAT,
                    shape=x.shape, attributes={"to": int(ir.DataType.FLOAT)},
                )  # fmt: skip
            made = ir.node("DynamicQuantizeLinear", [single], num_outputs=3, name=f"{name}.rounded")
            for value, part, dtype in zip(
                made.outputs,
                ("codes", "scale", "zero"),
                (ir.DataType.UINT8, ir.DataType.FLOAT, ir.DataType.UINT8),
                strict=True,
            ):
                value.name, value.dtype = self._unused(f"{name}.{part}"), dtype
                value.shape = x.shape if part == "codes" else ir.Shape([])
            before.graph.insert_before(before, made)
            self._quantised[x] = tuple(made.outputs)
        return self._quantised[x]
