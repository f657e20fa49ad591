"""The example that a graph is traced with: which of its axes are free, and of which size.

A tracer takes a size of one, or one that equals another, for a constant. So the example is cut or
repeated to sizes that nothing else in the network has.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain

import torch
from torch import nn

from lrcompress.errors import ExportError
from lrcompress.profiling.batches import Batch

BATCH, SEQUENCE = "batch", "sequence"
_SIZES = (7, 11, 13, 5, 17, 19, 23, 3, 29, 31, 37, 41)
_BATCHES = (2, 3, 5, 4, 6)

Axes = Mapping[str, Mapping[int, str]]  # input -> axis -> name


def free_axes(batch: Batch, asked: Axes, *, static_sequence: bool) -> dict[str, dict[int, str]]:
    """Axis 0 of every input is the batch, axis 1 of ids and masks (batch, length) the sequence.

    Inputs of another length than the first one's (a decoder's beside its encoder's) get a
    sequence of their own. `asked` adds axes or renames them.
    """
    for name, axes in asked.items():
        if name not in batch:
            raise ExportError(
                f"dynamic axes: no input named {name!r}; the inputs are {', '.join(batch)}"
            )
        for axis in axes:
            if not 0 <= axis < batch[name].dim():
                raise ExportError(
                    f"dynamic axes: {name} has {batch[name].dim()} axes, there is no axis {axis}"
                )
    lengths: dict[int, str] = {}
    named: dict[str, dict[int, str]] = {}
    for name, tensor in batch.items():
        if tensor.dim() == 0:
            raise ExportError(f"input {name} is a scalar; give every input a batch axis first")
        axes = {0: BATCH}
        if tensor.dim() == 2 and not tensor.is_floating_point() and not static_sequence:
            own = f"{name}_{SEQUENCE}" if lengths else SEQUENCE
            axes[1] = lengths.setdefault(tensor.shape[1], own)
        named[name] = axes | dict(asked.get(name, {}))
    return named


def tracing_example(module: nn.Module, batch: Batch, axes: Axes) -> Batch:
    """Rows and positions of `batch`, repeated or cut to sizes that collide with nothing.

    Axes that only the caller named keep the size they have in `batch`: an image, say, may need
    a multiple of its patches.
    """
    rows = {tensor.shape[0] for tensor in batch.values()}
    if len(rows) != 1:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in batch.items())
        raise ExportError(f"the inputs differ in their number of examples: {shapes or 'no inputs'}")
    taken = set(chain.from_iterable(p.shape for p in module.parameters()))
    for name, tensor in batch.items():
        taken.update(n for axis, n in enumerate(tensor.shape) if axis not in axes[name])
    sizes: dict[str, int] = {}
    for name, tensor in batch.items():
        for axis, label in axes[name].items():
            if label in sizes or not _may_resize(label):
                continue
            candidates = _BATCHES if label == BATCH else _fitting(tensor.shape[axis])
            free = [n for n in candidates if n not in taken] or [
                n for n in candidates if n not in sizes.values()
            ]
            sizes[label] = free[0]
            taken.add(free[0])
    return {name: _resized(tensor, axes[name], sizes) for name, tensor in batch.items()}


def _may_resize(label: str) -> bool:
    return label == BATCH or label.endswith(SEQUENCE)


def _fitting(length: int) -> tuple[int, ...]:
    """Sizes within the example's own length first: a longer one may exceed the positions."""
    return tuple(n for n in _SIZES if n <= length) + tuple(n for n in _SIZES if n > length)


def _resized(
    tensor: torch.Tensor, axes: Mapping[int, str], sizes: Mapping[str, int]
) -> torch.Tensor:
    for axis, label in axes.items():
        if label in sizes:
            index = torch.arange(sizes[label]) % tensor.shape[axis]
            tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor.contiguous().cpu()
