"""Values of a graph that depend only on constants, computed with numpy when they are needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Reader = Callable[[Any], Array]
_SMALL = ("INT4", "UINT4", "INT2", "UINT2")  # numpy computes with them as int16


def is_constant(value: Any, given: Any = None) -> bool:
    """Whether `reader` can compute the value. given: a value of the graph that is known too."""
    if value is None:
        return False
    if value is given or value.const_value is not None:
        return True
    node = value.producer()
    if node is None or node.domain:
        return False
    if node.op_type == "Constant":
        return "value" in node.attributes
    return node.op_type in _OPERATORS and all(
        is_constant(one, given) for one in node.inputs if one is not None
    )


def reader(value: Any, given: Any = None) -> Reader:
    """Return a function that computes the value, with 4-bit integers as int16.

    It needs the graph no more, which may be changed. Its argument is the array of `given`.
    """
    if value is given:
        return lambda array: array
    if value.const_value is not None:
        tensor = value.const_value
        return lambda _: _plain(tensor)
    node = value.producer()
    if node.op_type == "Constant":
        tensor = node.attributes["value"].value
        return lambda _: _plain(tensor)
    inputs = [None if one is None else reader(one, given) for one in node.inputs]
    attributes = {name: attribute.value for name, attribute in node.attributes.items()}
    operator = _OPERATORS[node.op_type]

    def read(array: Any = None) -> Array:
        return operator([None if one is None else one(array) for one in inputs], attributes)

    return read


def array_of(value: Any) -> Array:
    """Return the value of a constant."""
    return reader(value)(None)


def root_name(value: Any) -> str:
    """Return the name of the initializer from which a constant is computed."""
    while value.const_value is None and value.producer() is not None and value.producer().inputs:
        value = value.producer().inputs[0]
    return str(value.name)


def dequantised(
    codes: Array, scales: Array, zeros: Array | None, *, axis: int, block: int
) -> NDArray[np.float32]:
    """Return scale * (code - zero), as DequantizeLinear.

    block: codes along `axis` that share a scale; 0: all have their own scale along `axis`, or there
        is a single one.
    """
    size = codes.shape[axis]

    def spread(values: Array) -> NDArray[np.float32]:
        values = values.astype(np.float32)
        if block:
            return np.repeat(values, block, axis=axis).take(np.arange(size), axis=axis)
        if values.size == 1:
            return values.reshape(())
        shape = [1] * codes.ndim
        shape[axis] = -1
        return values.reshape(shape)

    centred = codes.astype(np.float32)
    if zeros is not None:
        centred = centred - spread(zeros)
    result: NDArray[np.float32] = centred * spread(scales)
    return result


def unpacked(stored: Array, bits: int) -> NDArray[np.uint8]:
    """Return the codes in the bytes of the last axis, low bits first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    codes = (stored[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    result: NDArray[np.uint8] = codes.reshape(*stored.shape[:-1], -1)
    return result


def _plain(tensor: Any) -> Array:
    values: Array = tensor.numpy()
    return values.astype(np.int16) if tensor.dtype.name in _SMALL else values


def _cast(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    import onnx_ir as ir

    dtype = ir.DataType(attributes["to"])
    values: Array = inputs[0].astype(np.int16 if dtype.name in _SMALL else dtype.numpy())
    return values


def _slice(inputs: list[Any], _: Mapping[str, Any]) -> Array:
    data, starts, ends = inputs[:3]
    axes = inputs[3] if len(inputs) > 3 and inputs[3] is not None else np.arange(len(starts))
    steps = inputs[4] if len(inputs) > 4 and inputs[4] is not None else np.ones(len(starts), int)
    index = [slice(None)] * data.ndim
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        index[int(axis)] = slice(int(start), int(end), int(step))
    result: Array = data[tuple(index)]
    return result


def _reshape(inputs: list[Any], _: Mapping[str, Any]) -> Array:
    data, target = inputs
    sizes = [data.shape[i] if size == 0 else int(size) for i, size in enumerate(target)]
    result: Array = data.reshape(sizes)
    return result


def _unsqueeze(inputs: list[Any], _: Mapping[str, Any]) -> Array:
    result: Array = np.expand_dims(inputs[0], tuple(int(axis) for axis in inputs[1]))
    return result


def _squeeze(inputs: list[Any], _: Mapping[str, Any]) -> Array:
    axes = tuple(int(axis) for axis in inputs[1]) if len(inputs) > 1 else None
    result: Array = np.squeeze(inputs[0], axes)
    return result


def _shift(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    left = attributes["direction"] in ("LEFT", b"LEFT")
    result: Array = inputs[0] << inputs[1] if left else inputs[0] >> inputs[1]
    return result


def _dequantize(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    codes, scales = inputs[:2]
    zeros = inputs[2] if len(inputs) > 2 else None
    axis, block = int(attributes.get("axis", 1)), int(attributes.get("block_size", 0))
    values: Array = dequantised(codes, scales, zeros, axis=axis, block=block)
    return values.astype(scales.dtype)


def _gather(inputs: list[Any], attributes: Mapping[str, Any]) -> Array:
    result: Array = np.take(
        inputs[0], inputs[1].astype(np.int64), axis=int(attributes.get("axis", 0))
    )
    return result


_OPERATORS: Mapping[str, Callable[[list[Any], Mapping[str, Any]], Array]] = {
    "Cast": _cast,
    "Transpose": lambda x, given: np.transpose(x[0], given.get("perm")),
    "Reshape": _reshape,
    "Slice": _slice,
    "Expand": lambda x, _: np.broadcast_to(x[0], np.broadcast_shapes(x[0].shape, tuple(x[1]))),
    "Unsqueeze": _unsqueeze,
    "Squeeze": _squeeze,
    "Gather": _gather,
    "BitShift": _shift,
    "BitwiseAnd": lambda x, _: np.bitwise_and(x[0], x[1]),
    "Add": lambda x, _: np.add(x[0], x[1]),
    "Sub": lambda x, _: np.subtract(x[0], x[1]),
    "Mul": lambda x, _: np.multiply(x[0], x[1]),
    "DequantizeLinear": _dequantize,
}
