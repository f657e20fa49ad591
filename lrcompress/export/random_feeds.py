"""Random inputs for an ONNX graph, generated from the graph's own description of its inputs."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrcompress.errors import DataError, LrcompressError
from lrcompress.export.axis_metadata import BATCH, SEQUENCE, KnownAxis
from lrcompress.export.session import GraphArgument
from lrcompress.messages import label

Feed = Mapping[str, NDArray[Any]]

MOST_INPUT = 2**27  # values of one input: half a gigabyte in float32
MOST_IDS = 2**20  # values of an integer input: each is a position, with a vector in the network
SAFE_IDS = 100  # token ids below this exist in every vocabulary of practical size
NUMPY_DTYPES: Mapping[str, str] = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(int64)": "int64",
    "tensor(int32)": "int32",
    "tensor(uint8)": "uint8",
    "tensor(int8)": "int8",
    "tensor(bool)": "bool",
}


@dataclass(frozen=True)
class GraphInput:
    name: str
    dtype: str  # numpy's name
    shape: tuple[int | str, ...]  # a string names a dimension that is free at run time
    id_limit: int = SAFE_IDS  # exclusive upper limit of integers


# (inputs of the graph, batch, sequence length or None) -> the arrays to feed
InputMaker = Callable[[Sequence[GraphInput], int, int | None], Feed]


def refuse_huge(
    argument: GraphArgument, error: type[LrcompressError], sizes: Sequence[int | str | None]
) -> None:
    """Raise `error` if these sizes of an input have an empty batch or exceed the limits."""
    if any(isinstance(size, int) and size < 1 for size in sizes[:1]):
        raise error(
            f"input {label(argument.name)}: the graph fixes its batch to {sizes[0]}; "
            "export it with a free batch"
        )
    most = MOST_IDS if "int" in argument.type else MOST_INPUT
    if prod(size for size in sizes if isinstance(size, int)) > most:
        shape = " x ".join(str(size) if isinstance(size, int) else "?" for size in sizes)
        raise error(
            f"input {label(argument.name)}: the graph's fixed axes need {shape}, more than the "
            f"{most:,} values that lrcompress generates for an input; export it with free axes"
        )


def graph_inputs(
    arguments: Iterable[GraphArgument],
    id_limits: Mapping[str, int],
    known: Mapping[str, KnownAxis] | None = None,
) -> tuple[GraphInput, ...]:
    """Return the inputs of a graph.

    known: axes that the metadata describes. Those that are neither batch nor sequence get the size
        that they had in the example.

    Raises:
        DataError: the dtype of an input is not supported, or an input would be too large.
    """
    own = {name: axis.size for name, axis in (known or {}).items() if not _varies(name)}
    found = []
    for argument in arguments:
        refuse_huge(argument, DataError, argument.shape)
        if argument.type not in NUMPY_DTYPES:
            raise DataError(
                f"input {argument.name}: {argument.type} cannot be generated; "
                "export with float32 or float16 inputs"
            )
        shape = tuple(
            dim if isinstance(dim, int) else own.get(dim or "", dim or f"axis {axis}")
            for axis, dim in enumerate(argument.shape)
        )
        limit = min(SAFE_IDS, id_limits.get(argument.name, SAFE_IDS))
        found.append(GraphInput(argument.name, NUMPY_DTYPES[argument.type], shape, limit))
    return tuple(found)


def has_free_length(inputs: Iterable[GraphInput]) -> bool:
    return any(
        isinstance(dim, str) and not _is_batch(dim, axis)
        for given in inputs
        for axis, dim in enumerate(given.shape)
    )


def make_feed(inputs: Sequence[GraphInput], batch: int, length: int | None, seed: int) -> Feed:
    """Generate the inputs of a graph.

    The values depend only on the input and the seed, so two graphs of one model see the same data.
    """
    return {given.name: _make_array(given, batch, length, seed) for given in inputs}


def _make_array(given: GraphInput, batch: int, length: int | None, seed: int) -> NDArray[Any]:
    shape = tuple(_size(given, axis, batch, length) for axis in range(len(given.shape)))
    dtype, name = np.dtype(given.dtype), given.name.lower()
    random = np.random.default_rng([seed, zlib.crc32(given.name.encode())])
    if dtype.kind == "f":
        # By way of float32: rounded from float64 at once, a few float16 values would differ
        return random.standard_normal(shape).astype(np.float32).astype(dtype)
    if dtype.kind == "b" or "mask" in name:
        return np.ones(shape, dtype)
    if "token_type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    if "position" in name:
        return np.broadcast_to(np.arange(shape[-1], dtype=dtype), shape).copy()
    return random.integers(0, given.id_limit, shape).astype(dtype)


def _size(given: GraphInput, axis: int, batch: int, length: int | None) -> int:
    dim = given.shape[axis]
    if isinstance(dim, int):
        if axis == 0 and dim != batch:
            raise DataError(
                f"input {given.name}: its batch is fixed to {dim}; bench with batch {dim} or "
                "export with a dynamic batch"
            )
        return dim
    if _is_batch(dim, axis):
        return batch
    if length is None or len(given.shape) > 3:
        raise DataError(
            f"input {given.name}: the size of its axis {axis} ({dim}) is not known; "
            "export with that axis fixed"
        )
    return length


def _varies(name: str) -> bool:
    return name == BATCH or name.endswith(SEQUENCE)


def _is_batch(dim: str, axis: int) -> bool:
    return axis == 0 or "batch" in dim.lower()


def id_limits(path: str | Path) -> dict[str, int]:
    """Return, for each input that indexes tables of the graph, the rows of the smallest one."""
    import onnx

    graph = onnx.load(path, load_external_data=False).graph
    rows = {tensor.name: tensor.dims[0] for tensor in graph.initializer if tensor.dims}
    source = {value.name: value.name for value in graph.input}
    limits: dict[str, int] = {}
    for node in graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in source:
            source[node.output[0]] = source[node.input[0]]
        elif node.op_type == "Gather" and node.input[0] in rows and node.input[1] in source:
            if any(a.name == "axis" and a.i != 0 for a in node.attribute):
                continue
            name = source[node.input[1]]
            limits[name] = min(limits.get(name, rows[node.input[0]]), rows[node.input[0]])
    return limits
