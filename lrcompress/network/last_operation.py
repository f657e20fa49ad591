"""Find the last operation of a network and the feature dimension of its last layer.

Operations are observed as PyTorch dispatches them, so functions count as well as modules. Only
sizes and strides are kept.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lrcompress.network.outputs import tensors_of

SOFTMAX, LOG_SOFTMAX, SIGMOID = "softmax", "log_softmax", "sigmoid"
ENDINGS = {
    "_softmax": SOFTMAX,
    "_log_softmax": LOG_SOFTMAX,
    "sigmoid": SIGMOID,
    "sigmoid_": SIGMOID,
    "hardsigmoid": SIGMOID,
    "hardsigmoid_": SIGMOID,
}
# Operations whose output is a probability if their input is one
KEEPING = (
    "clone", "_to_copy", "contiguous", "clamp", "clamp_min", "clamp_max", "cat", "stack",
    "upsample_nearest2d", "upsample_bilinear2d", "index_select", "index",
)  # fmt: skip
MATRIX_PRODUCTS = ("addmm", "mm", "linear", "bmm", "baddbmm", "matmul")  # features last
CONVOLUTIONS = ("convolution", "convolution_overrideable", "mkldnn_convolution")  # features second


@dataclass(frozen=True)
class Origin:
    """The operation that computed a tensor. `dim`: of the softmax or the last layer's features."""

    operation: str = ""  # "softmax", "log_softmax", "sigmoid"; "" for any other
    dim: int | None = None


UNKNOWN = Origin()


@dataclass(frozen=True)
class _Written:
    """The last operation that wrote to a memory address, and its features' size and stride."""

    operation: str
    size: int = 0  # 0: unknown
    stride: int = 0

    def dim_of(self, tensor: Tensor) -> int | None:
        found = [
            dim
            for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True))
            if (size, stride) == (self.size, self.stride)
        ]
        return found[0] if len(found) == 1 else None


@dataclass(frozen=True, eq=False)
class OriginTrace:
    """The origins of the tensors of a run, noted by `note`; `origin` returns that of an output."""

    _written: dict[int, _Written] = field(default_factory=dict)  # by the address of the memory

    def origin(self, tensor: Tensor) -> Origin:
        written = self._known(tensor)
        return UNKNOWN if written is None else Origin(written.operation, written.dim_of(tensor))

    def note(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: Any) -> None:
        out = result[0] if isinstance(result, tuple | list) and result else result
        if not isinstance(out, Tensor) or out.layout is not torch.strided:
            return
        given = [x for x in tensors_of(args) if x.layout is torch.strided]
        mutable = func._schema.is_mutable
        if not mutable and any(_address(x) == _address(out) for x in given):
            return  # a view
        name = func._overloadpacket.__name__
        known = [self._known(x) for x in given]
        before = known[0] if known and all(x is not None for x in known) else None
        operation = ENDINGS.get(name, "")
        if name in KEEPING and before is not None:
            same = all(x is not None and x.operation == before.operation for x in known)
            operation = before.operation if same else ""
        dim = self._dim(name, args, given, out)
        features = () if dim is None else (out.shape[dim], out.stride()[dim])
        self._written[_address(out)] = _Written(operation, *features)

    def _dim(
        self, name: str, args: Sequence[Any], given: Sequence[Tensor], out: Tensor
    ) -> int | None:
        """The feature dimension of `out`; operations that keep its size and position keep it."""
        if name in ("_softmax", "_log_softmax"):
            return int(args[1]) % max(out.dim(), 1) if out.dim() else None
        if name in MATRIX_PRODUCTS:
            return out.dim() - 1 if out.dim() else None
        if name in CONVOLUTIONS:
            return 1 if out.dim() >= 3 else None
        for tensor in given:
            written = self._known(tensor) if tensor.dim() == out.dim() else None
            dim = None if written is None else written.dim_of(tensor)
            if dim is not None and out.shape[dim] == tensor.shape[dim]:
                return dim
        return None

    def _known(self, tensor: Tensor) -> _Written | None:
        return self._written.get(_address(tensor))


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
