"""Inputs for comparing outputs: rows, windows and padding drawn from an example, in other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor

from lrcompress.export.axis_metadata import BATCH, SEQUENCE, Axes, KnownAxis
from lrcompress.export.axis_range import AxisRange
from lrcompress.network.batches import Batch

MASK = "attention_mask"  # (batch, length), 0 on padding
_MOST_ROWS = 1024  # a larger minimum batch in a file's metadata is ignored
_LONG = 128  # examples at least this long are not extended


class AxisSize(NamedTuple):
    label: str  # name of the axis in the graph
    input: str
    axis: int
    size: int


@dataclass(frozen=True)
class Case:
    """One shape to compare on. `length` is that of the example's longest sequences."""

    batch: int
    length: int | None  # None: no input has a sequence
    left_padded: bool = False
    sizes: tuple[AxisSize, ...] = ()  # of the free axes that the metadata describes

    def __str__(self) -> str:
        shape = f"{self.batch}" if self.length is None else f"{self.batch}x{self.length}"
        others = {x.label: x.size for x in self.sizes if not x.label.endswith(SEQUENCE)}
        return " ".join([shape, *(f"{label}={size}" for label, size in others.items())])


@dataclass(frozen=True)
class FreeAxes:
    """Free axes of a graph, and what is known of them (nothing for files of other exporters)."""

    names: Axes = field(default_factory=dict)  # input of the network -> axis -> name
    known: Mapping[str, KnownAxis] = field(default_factory=dict)


NOTHING_KNOWN = FreeAxes()


def cases(batch: Batch, longest: int | None, free: FreeAxes = NOTHING_KNOWN) -> tuple[Case, ...]:
    """Return cases with batches of 1 to 5 and several lengths.

    The lengths are 1, an odd one, an even one, the example's own, and a longer one if allowed.

    longest: the length that the network is known to accept; None if only the example's is known.
    free: for an axis with known sizes, several of the sizes that it accepts are drawn.
    """
    own = _longest(batch)
    if own is None:
        found = [Case(1, None), Case(2, None), Case(3, None), Case(5, None)]
    else:
        long = own if own >= _LONG or longest is None else min(2 * own + 1, max(own, longest))
        odd = max(1, (own // 2 - 1) | 1)
        found = [
            Case(1, 1),
            Case(1, odd),
            Case(3, odd + 1),
            Case(2, own, left_padded=True),
            Case(5, long),
        ]
    fitting = (_fitting(case, place, batch, free) for place, case in enumerate(found))
    return tuple(dict.fromkeys(fitting))


def _fitting(case: Case, place: int, batch: Batch, free: FreeAxes) -> Case:
    """Return the case with sizes that the graph accepts; other known axes vary with `place`."""
    rows, length, known = case.batch, case.length, free.known
    if BATCH in known and known[BATCH].range.nearest(1) <= _MOST_ROWS:
        rows = known[BATCH].range.nearest(rows)
    longest = _longest(batch) or 1
    if SEQUENCE in known and length is not None and longest in known[SEQUENCE].range:
        length = known[SEQUENCE].range.nearest(length)
    shifts = {name: shift for shift, name in enumerate(known)}
    sizes = []
    for name, axes in free.names.items():
        for axis, label in axes.items():
            own = batch[name].shape[axis] if axis > 0 and name in batch else 0
            if label in known and own in known[label].range:  # else the file contradicts the data
                size = _size(known[label].range, own, label, case, place + shifts[label], longest)
                sizes.append(AxisSize(label, name, axis, size))
    return Case(rows, length, case.left_padded, tuple(sizes))


def _size(takes: AxisRange, own: int, label: str, case: Case, place: int, longest: int) -> int:
    if label.endswith(SEQUENCE) and case.length is not None:
        beside = 0 if label == SEQUENCE else 1  # independent lengths should differ
        return takes.nearest(_scaled(case.length, own, longest) + beside)
    step, half = takes.step, own // 2
    drawn = (max(takes.least, half), own, own + step, half + step, own + 2 * step)
    return takes.nearest(drawn[place % len(drawn)])


def draw(
    batch: Batch, case: Case, fixed: Mapping[str, Mapping[int, int]], generator: torch.Generator
) -> Batch:
    """Draw a batch of the case's shape whose values come from `batch`.

    fixed: axes whose size the graph fixes: input -> axis -> size.
    """
    rows = next((axes[0] for axes in fixed.values() if 0 in axes), case.batch)
    examples = min(tensor.shape[0] for tensor in batch.values())
    picked = torch.randint(examples, (rows,), generator=generator)
    longest = _longest(batch) or 1
    sizes: dict[str, dict[int, int]] = {name: {} for name in batch}
    for one in case.sizes:
        if one.axis not in fixed.get(one.input, {}) and one.input in sizes:
            sizes[one.input][one.axis] = one.size
    for name, tensor in batch.items():
        if is_sequence(tensor) and case.length is not None:
            length = fixed.get(name, {}).get(1) or _scaled(case.length, tensor.shape[1], longest)
            sizes[name].setdefault(1, length)
    return redrawn(batch, picked, sizes, generator, left_padded=case.left_padded)


def redrawn(
    batch: Batch,
    rows: Tensor,
    sizes: Mapping[str, Mapping[int, int]],
    generator: torch.Generator,
    *,
    left_padded: bool = False,
) -> Batch:
    """Return examples `rows` of a batch, with axes cut or repeated to `sizes`.

    A sequence whose length is in `sizes` starts at a random offset, and its mask gets new padding.

    sizes: input -> axis -> size.
    """
    offset = int(torch.randint(_longest(batch) or 1, (1,), generator=generator))
    drawn: Batch = {}
    for name, tensor in batch.items():
        values = tensor.cpu()[rows]
        varies = is_sequence(tensor) and not bool((tensor == tensor[:1]).all())
        for axis, size in sizes.get(name, {}).items():
            start = offset if axis == 1 and varies else 0
            values = values.index_select(axis, (start + torch.arange(size)) % tensor.shape[axis])
        if is_sequence(tensor) and 1 in sizes.get(name, {}):
            if name.endswith(MASK):
                values = _padding(values, generator, left=left_padded)
        elif values.is_floating_point() and not bool((values == values.round()).all()):
            values = values * (1 + 0.05 * torch.randn(values.shape, generator=generator))
        drawn[name] = values.contiguous()
    return drawn


def is_sequence(tensor: Tensor) -> bool:
    """Whether the tensor holds ids or a mask: (examples, positions)."""
    return tensor.dim() == 2 and not tensor.is_floating_point()


def _longest(batch: Batch) -> int | None:
    return max((t.shape[1] for t in batch.values() if is_sequence(t)), default=None)


def _scaled(length: int, own: int, longest: int) -> int:
    """Scale the length of a shorter sequence (a decoder's, say) in proportion to the longest."""
    return max(1, round(length * own / longest))


def _padding(mask: Tensor, generator: torch.Generator, *, left: bool) -> Tensor:
    """Draw a mask with a random amount of padding in each row; the first row is not padded."""
    rows, length = mask.shape
    real = torch.randint(1, max(2, length), (rows, 1), generator=generator)
    real[0] = length
    positions = torch.arange(length).expand(rows, length)
    keep = positions >= length - real if left else positions < real
    return keep.to(mask.dtype)
