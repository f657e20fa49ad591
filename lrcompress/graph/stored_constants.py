"""The stored constants of a graph, read one at a time and compared by samples.

A tensor may be stored with its axes in another order, in another shape, and in another dtype. A few
values at fixed indices (a probe), taken in every order of the axes, identify the stored tensor.
Only that one is then read completely.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from lrcompress.errors import ModelError
from lrcompress.messages import one_line

PROBES = 64
CHUNK = 2**20  # values compared at a time
_MOST_AXES = 4  # up to this many axes, every order is tried
Order = tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Stored:
    """A constant of a graph. Every call of `array` reads its values again."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # onnx_ir's name in lower case
    tensor: Any  # an onnx_ir tensor
    norms: tuple[Any, ...]  # onnx_ir norm nodes that use it as their scale

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def whole(self) -> bool:
        """Whether it holds integers, such as positions or indices."""
        return "int" in self.dtype

    def array(self) -> NDArray[Any]:
        """Return the values without axes of size one."""
        values: NDArray[Any] = self.tensor.numpy()
        return values.squeeze()

    def release(self) -> None:
        """Unmap the file with the values, unless a view of them still exists."""
        release = getattr(self.tensor, "release", None)
        if release is not None:
            with contextlib.suppress(BufferError):
                release()

    @cached_property
    def orders(self) -> tuple[Order, ...]:
        """All orders of the axes longer than one; only the stored order above _MOST_AXES axes."""
        axes = range(sum(size > 1 for size in self.shape))
        return tuple(permutations(axes)) if len(axes) <= _MOST_AXES else (tuple(axes),)

    @cached_property
    def probes(self) -> NDArray[np.float64]:
        """The values at the indices of `probe_places`, for each order: (orders, PROBES)."""
        array = self.array()
        places = probe_places(self.size)
        found = [_at(array.transpose(order), places) for order in self.orders]
        del array
        self.release()
        return np.stack(found)

    def chunks(self, order: Order) -> Iterator[NDArray[Any]]:
        """Yield all values, flattened in that order of the axes, in chunks."""
        array = self.array().transpose(order)
        dtype = np.int64 if self.whole else np.float32
        if array.ndim == 0:
            yield array.reshape(1).astype(dtype)
        else:
            rows = max(1, CHUNK * len(array) // max(array.size, 1))
            for start in range(0, len(array), rows):
                yield np.array(array[start : start + rows], dtype, order="C").reshape(-1)
        del array
        self.release()


def probe_places(size: int) -> NDArray[np.int64]:
    """Return PROBES indices into a flattened tensor, which depend only on its size."""
    if size <= PROBES:
        return np.arange(PROBES, dtype=np.int64) % max(size, 1)
    return np.sort(np.random.default_rng(size).integers(0, size, PROBES))


def _at(array: NDArray[Any], places: NDArray[np.int64]) -> NDArray[np.float64]:
    index = np.unravel_index(places, array.shape) if array.ndim else ()
    return np.broadcast_to(array[index], places.shape).astype(np.float64)


_READABLE = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT64", "INT32")
_NORMS = ("LayerNormalization", "RMSNormalization", "GroupNormalization", "BatchNormalization",
          "InstanceNormalization", "SimplifiedLayerNormalization")  # fmt: skip


def read_graph(graph: onnx.ModelProto, folder: Path) -> Any:
    """Convert the graph to an onnx_ir.Model, with external data left in `folder`.

    Raises:
        ModelError: a field of the file is malformed.
    """
    import onnx_ir as ir

    try:
        model = ir.serde.deserialize_model(graph)
        for part in model.graphs():
            ir.external_data.set_base_dir(part, folder)
    except Exception as error:  # onnx_ir's errors share no base below Exception
        cause = error.__cause__ or error
        raise ModelError(
            f"{folder}: a field of the ONNX file is malformed ({one_line(cause)}); export it again"
        ) from error
    return model


def stored_constants(model: Any) -> tuple[Stored, ...]:
    """Return the initializers and Constants of an onnx_ir.Model, of readable dtypes."""
    import onnx_ir as ir

    found = []
    for part in model.graphs():
        values = part.initializers.values()
        found += [(v, v.const_value) for v in values if v.const_value is not None]
        for node in part:
            constant = node.attributes.get("value") if node.op_type == "Constant" else None
            if constant is not None and constant.type == ir.AttributeType.TENSOR:
                found.append((node.outputs[0], constant.value))
    return tuple(
        Stored(
            name=value.name or "",
            shape=tuple(map(int, tensor.shape)),
            dtype=tensor.dtype.name.lower(),
            tensor=tensor,
            norms=tuple(n for n, index in value.uses() if n.op_type in _NORMS and index == 1),
        )
        for value, tensor in found
        if tensor.dtype.name in _READABLE and tensor.size
    )
