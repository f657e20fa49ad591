"""Wrong copies of an ONNX file, each with one change that alters what it computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import combinations
from typing import Any

import numpy as np
import onnx_ir as ir

Mutant = tuple[str, Callable[[ir.Model], None]]
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def weights(model: ir.Model, least: int = 4) -> list[str]:
    """Floating-point initializers of at least so many values."""
    return [
        name
        for name, value in model.graph.initializers.items()
        if value.dtype in _FLOATS and value.const_value.size >= least
    ]


def tables(model: ir.Model) -> list[str]:
    """Initializers whose rows are looked up."""
    return [
        node.inputs[0].name
        for node in model.graph
        if node.op_type == "Gather"
        and node.inputs[0].name in model.graph.initializers
        and node.inputs[0].dtype in _FLOATS
    ]


def _set(model: ir.Model, name: str, values: np.ndarray) -> None:
    value = model.graph.initializers[name]
    value.const_value = ir.tensor(values.astype(value.dtype.numpy()))


def scaled(name: str, error: float) -> Mutant:
    def edit(model: ir.Model) -> None:
        values = model.graph.initializers[name].const_value.numpy().astype(np.float64)
        _set(model, name, values * (1 + error))

    return f"{name} by {error}", edit


def noisy(name: str, error: float) -> Mutant:
    """Noise of that size, relative to the root mean square."""

    def edit(model: ir.Model) -> None:
        values = model.graph.initializers[name].const_value.numpy().astype(np.float64)
        noise = np.random.default_rng(0).standard_normal(values.shape)
        _set(model, name, values + error * np.sqrt(np.square(values).mean()) * noise)

    return f"noise on {name} of {error}", edit


def one_row(name: str, row: int, error: float) -> Mutant:
    def edit(model: ir.Model) -> None:
        values = model.graph.initializers[name].const_value.numpy().astype(np.float64)
        values[row] *= 1 + error
        _set(model, name, values)

    return f"row {row} of {name} by {error}", edit


def structural(model: ir.Model) -> Iterator[Mutant]:
    """Changes of nodes, attributes, whole-number constants and outputs."""
    for index, node in enumerate(model.graph):
        if node.op_type in ("Add", "Gemm") and _constant(node.inputs[-1]):
            yield f"{node.op_type} {index} without its bias", _without_bias(index)
        if node.op_type in ("Add", "Mul"):
            other = {"Add": "Sub", "Mul": "Div"}[node.op_type]
            yield f"{node.op_type} {index} is {other}", _renamed(index, other)
        for name, value in (("epsilon", 1e-6), ("axis", 0)):
            attribute = node.attributes.get(name)
            if attribute is not None and abs(attribute.value - value) > 1e-8:
                yield f"{name} of {node.op_type} {index}", _attribute(index, name, value)
    by_shape: dict[Any, list[str]] = {}
    for name in weights(model):
        value = model.graph.initializers[name]
        by_shape.setdefault((value.dtype, tuple(value.const_value.shape)), []).append(name)
    for names in by_shape.values():
        for a, b in list(combinations(names, 2))[:40]:
            yield f"{a} and {b} exchanged", _exchanged(a, b)
    for name, value in model.graph.initializers.items():
        if value.dtype == ir.DataType.INT64:
            for place in range(value.const_value.size):
                yield f"{name}[{place}] + 1", _incremented(name, place)
    for place in range(len(model.graph.outputs)):
        yield f"output {place} removed", _without_output(place)
    if len(model.graph.outputs) > 1:
        yield "outputs reversed", lambda m: _reverse(m.graph.outputs)


def _constant(value: Any) -> bool:
    return value is not None and value.const_value is not None and value.const_value.size > 1


def _node(model: ir.Model, index: int) -> Any:
    return model.graph[index]


def _without_bias(index: int) -> Callable[[ir.Model], None]:
    def edit(model: ir.Model) -> None:
        node = _node(model, index)
        bias = node.inputs[-1]
        zeros = np.zeros(bias.const_value.shape, bias.dtype.numpy())
        value = ir.Value(
            name="nothing", type=bias.type, shape=bias.shape, const_value=ir.tensor(zeros)
        )
        model.graph.initializers["nothing"] = value
        node.replace_input_with(len(node.inputs) - 1, value)

    return edit


def _renamed(index: int, operator: str) -> Callable[[ir.Model], None]:
    def edit(model: ir.Model) -> None:
        _node(model, index).op_type = operator

    return edit


def _attribute(index: int, name: str, value: float) -> Callable[[ir.Model], None]:
    def edit(model: ir.Model) -> None:
        made = (
            ir.AttrFloat32(name, value) if isinstance(value, float) else ir.AttrInt64(name, value)
        )
        _node(model, index).attributes[name] = made

    return edit


def _exchanged(a: str, b: str) -> Callable[[ir.Model], None]:
    """The nodes read each other's weight; the weights keep their names."""

    def edit(model: ir.Model) -> None:
        first, second = model.graph.initializers[a], model.graph.initializers[b]
        uses = [(node, index, second) for node, index in first.uses()]
        uses += [(node, index, first) for node, index in second.uses()]
        for node, index, value in uses:
            node.replace_input_with(index, value)

    return edit


def _incremented(name: str, place: int) -> Callable[[ir.Model], None]:
    def edit(model: ir.Model) -> None:
        values = model.graph.initializers[name].const_value.numpy().copy()
        flat = values.reshape(-1)
        flat[place] += 1 if flat[place] < 2**62 else -(2**62)
        model.graph.initializers[name].const_value = ir.tensor(flat.reshape(values.shape))

    return edit


def _without_output(place: int) -> Callable[[ir.Model], None]:
    def edit(model: ir.Model) -> None:
        del model.graph.outputs[place]

    return edit


def _reverse(outputs: Any) -> None:
    kept = list(outputs)
    outputs.clear()
    outputs.extend(reversed(kept))
