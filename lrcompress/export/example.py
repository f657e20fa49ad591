"""The example that a graph is traced with.

A tracer treats a size of one, or a size that equals another, as a constant. So the free axes of the
example are cut or repeated to sizes that nothing else in the network has.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain, count, islice

import torch
from torch import nn

from lrcompress.export.axis_metadata import BATCH, SEQUENCE, KnownAxis
from lrcompress.export.graph_axes import GraphAxes
from lrcompress.network.batches import Batch

_SIZES = (7, 11, 13, 5, 17, 19, 23, 3, 29, 31, 37, 41)
_BATCHES = (2, 3, 5, 4, 6)
_MULTIPLES = 12  # of an axis's step, searched for a unique size


def tracing_example(
    module: nn.Module, batch: Batch, axes: GraphAxes, *, unlike: Batch | None = None
) -> Batch:
    """Return `batch` with free axes repeated or cut to unique sizes that the network accepts.

    Batch and lengths are small. Other free axes keep about their size, because a network may behave
    differently at small sizes.

    unlike: another example whose sizes are also avoided.
    """
    free = axes.free
    taken = set(chain.from_iterable(p.shape for p in module.parameters()))
    taken.update(chain.from_iterable(t.shape for t in (unlike or {}).values()))
    for name, tensor in batch.items():
        taken.update(n for axis, n in enumerate(tensor.shape) if axis not in free[name])
    sizes: dict[str, int] = {}
    for name, known in axes.known.items():
        candidates = [n for n in _candidates(name, known) if n in known.range]
        distinct = [n for n in candidates if n not in taken] or [
            n for n in candidates if n not in sizes.values()
        ]
        sizes[name] = (distinct or candidates)[0]
        taken.add(sizes[name])
    wanted: dict[str, dict[int, int]] = {name: {} for name in batch}
    for one in axes.named:
        for name, axis in one.group.axes:
            wanted[name][axis] = sizes[one.name] if one.free else one.group.size
    return {name: _resized(tensor, wanted[name]) for name, tensor in batch.items()}


def _candidates(name: str, known: KnownAxis) -> Iterator[int]:
    """Yield sizes in order of preference, including the axis's own size."""
    step, least = known.range.step, known.range.least
    if name == BATCH:
        yield from _BATCHES
    elif name.endswith(SEQUENCE):
        yield from _fitting(known.size)
    yield known.size
    for multiple in range(1, _MULTIPLES):
        yield known.size + multiple * step
        yield known.size - multiple * step
    yield from islice(count(least, step), _MULTIPLES)


def _fitting(length: int) -> tuple[int, ...]:
    """Return _SIZES, those up to `length` first: longer ones may exceed the table of positions."""
    return tuple(n for n in _SIZES if n <= length) + tuple(n for n in _SIZES if n > length)


def _resized(tensor: torch.Tensor, sizes: Mapping[int, int]) -> torch.Tensor:
    for axis, size in sizes.items():
        if size != tensor.shape[axis]:
            index = torch.arange(size) % tensor.shape[axis]
            tensor = tensor.index_select(axis, index.to(tensor.device))
    return tensor.contiguous().cpu()
