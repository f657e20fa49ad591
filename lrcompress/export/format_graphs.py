"""Small ONNX graphs of a layer in a structure and a number format, made only to be timed.

The weights are random codes: time does not depend on values. Each graph holds several copies of the
layer with their own inputs and weights, so that the fixed cost of a call is small and the weights
are not all in the cache, as in a network.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrcompress.number_formats import CastFormat, Format, GridFormat, Int8Dynamic

OPSET, CONTRIB = 21, "com.microsoft"
COPIES_BYTES = 2**24  # of float32 weights, in all copies together
MOST_COPIES = 16
ACCURACY = 4  # of MatMulNBits: products in int8
Matrix = tuple[int, int]  # out, in


def copies_of(matrix: Matrix) -> int:
    """Return the number of copies of a dense layer (out, in) in a graph."""
    return int(min(MOST_COPIES, max(1, COPIES_BYTES // (4 * matrix[0] * matrix[1]))))


def input_name(copy: int) -> str:
    return f"rows_{copy}"


@dataclass(eq=False)
class _Builder:
    """Nodes and initializers of one graph."""

    generator: np.random.Generator
    accuracy: int
    nodes: list[Any] = field(default_factory=list)
    constants: list[Any] = field(default_factory=list)

    def constant(self, values: NDArray[Any]) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(values, name))
        return name

    def node(
        self, kind: str, inputs: Sequence[str], *, outputs: int = 1, domain: str = "", **given: Any
    ) -> list[str]:
        from onnx import helper

        names = [f"v{len(self.nodes)}_{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, list(inputs), names, domain=domain, **given))
        return names

    def product(self, rows: str, matrix: Matrix, kind: Format) -> str:
        """Add rows (rows, in) @ weight (out, in)ᵀ; return the name of the result."""
        if isinstance(kind, CastFormat):
            return self._float(rows, matrix)
        assert isinstance(kind, GridFormat)
        if isinstance(kind, Int8Dynamic):
            return self._dynamic(rows, matrix)
        return self._blocks(rows, matrix, kind)

    def _float(self, rows: str, matrix: Matrix) -> str:
        """A cast weight is cast back once, when the session is opened."""
        weight = self.generator.standard_normal(matrix[::-1], np.float32) / matrix[1]
        return self.node("MatMul", [rows, self.constant(weight)])[0]

    def _dynamic(self, rows: str, matrix: Matrix) -> str:
        out, inner = matrix
        weight = self.generator.integers(-127, 128, (inner, out), dtype=np.int8)
        scale = np.full(out, 0.01 / inner, np.float32)
        codes, step, zero = self.node("DynamicQuantizeLinear", [rows], outputs=3)
        whole = self.node("MatMulInteger", [codes, self.constant(weight), zero])
        cast = self.node("Cast", whole, to=1)
        both = self.node("Mul", [step, self.constant(scale)])
        return self.node("Mul", [*cast, *both])[0]

    def _blocks(self, rows: str, matrix: Matrix, kind: GridFormat) -> str:
        out, inner = matrix
        block = kind.block or 128
        count = ceil(inner / block)
        codes = self.generator.integers(0, 256, (out, count, block * kind.bits // 8), np.uint8)
        inputs = [
            rows,
            self.constant(codes),
            self.constant(np.full((out, count), 0.1 / inner, np.float32)),
        ]
        if not kind.symmetric:
            size = (out, ceil(count * kind.bits / 8))
            inputs.append(self.constant(self.generator.integers(0, 256, size, np.uint8)))
        given = {"K": inner, "N": out, "bits": kind.bits, "block_size": block}
        return self.node(
            "MatMulNBits", inputs, domain=CONTRIB, accuracy_level=self.accuracy, **given
        )[0]


def layer_graph(
    factors: Sequence[Matrix], formats: Sequence[Format], *, copies: int, accuracy: int = ACCURACY
) -> Any:
    """Return an onnx.ModelProto: `copies` times y = F_k ... F_1 x + b.

    factors: (out, in) of F_1, ..., F_k; formats: one for each. Inputs are called `input_name(copy)`
    and are (rows, in).
    """
    from onnx import TensorProto, helper

    builder = _Builder(np.random.default_rng(0), accuracy)
    inputs, outputs = [], []
    out = factors[-1][0]
    for copy in range(copies):
        name = value = input_name(copy)
        inputs.append(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", factors[0][1]])
        )
        for matrix, kind in zip(factors, formats, strict=True):
            value = builder.product(value, matrix, kind)
        (value,) = builder.node("Add", [value, builder.constant(np.zeros(out, np.float32))])
        outputs.append(helper.make_tensor_value_info(value, TensorProto.FLOAT, ["batch", out]))
    graph = helper.make_graph(builder.nodes, "layer", inputs, outputs, builder.constants)
    domains = [helper.make_opsetid("", OPSET), helper.make_opsetid(CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=domains, ir_version=10)
