"""What the recipes share: the options, and the nodes that several weights use."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from lrcompress.graph.names import unused_name

Operators = Literal["contrib", "standard"]
Products = Literal["auto", "rounded", "exact"]
MICROSOFT = "com.microsoft"


@dataclass(frozen=True)
class StorageOptions:
    """operators: "contrib" has ONNX Runtime's own operators; "standard" has ONNX's alone.

    products: of weights in codes. "rounded": the kernels round their inputs to 8 bits by blocks.
        "exact": they compute in float32. "auto": weights of 8 bits exactly, others rounded. Only
        the kernels of a CPU round.

    provider: that the graph is for.

    others: the format of weights that no layer holds, fp32, fp16 or int8 (other_constants.py).

    Rounding an input to 8 bits costs about what rounding the weight to 8 bits costs, and little
    beside 4 bits. MiniLM in int8/128: the mean cosine of its embeddings to the dense ones is .9991
    rounded and .9998 exact; in int4/32 .97366 and .97370. The kernels of 8 bits are slow in float32
    (one thread, one token: .27 ms rounded, 34 ms exact), so exact weights of 8 bits are not read by
    them: the session dequantises these once, when it opens the file, and multiplies as in the dense
    network.
    """

    operators: Operators = "contrib"
    products: Products = "auto"
    provider: str = "cpu"
    others: str = "fp32"

    def is_exact(self, bits: int) -> bool:
        """Whether products with codes of so many bits compute in float32."""
        exact = self.products == "exact" or (self.products == "auto" and bits == 8)
        return exact and self.provider == "cpu"

    def opens_as_floats(self, bits: int) -> bool:
        """Whether the session is to dequantise the weights of products when it opens the file.

        A session gives DequantizeLinear rounded products, so that standard operators cannot ask for
        exact ones otherwise.
        """
        return self.is_exact(bits) and (bits == 8 or self.operators == "standard")


class Context:
    """A graph that is being rewritten."""

    def __init__(self, model: Any, options: StorageOptions) -> None:
        self.model = model
        self.options = options
        self._quantised: dict[Any, tuple[Any, Any, Any]] = {}
        self._blocks: dict[tuple[int, int], Any] = {}
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

    def blocks(self, columns: int, block: int) -> Any:
        """Return the index of each column's block, int32 (columns,); one for all who ask."""
        if (columns, block) not in self._blocks:
            index = (np.arange(columns) // block).astype(np.int32)
            name = f"blocks.{columns}.{block}"
            self._blocks[columns, block] = self.initializer(name, index)
        return self._blocks[columns, block]

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
