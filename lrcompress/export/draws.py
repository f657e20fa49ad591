"""Inputs to compare on: rows, windows and padding drawn from an example, in other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.export.axis_metadata import BATCH, SEQUENCE, KnownAxis
from lrcompress.profiling.batches import Batch

MASK = "attention_mask"  # by contract (batch, length), 0 on padding
_LONG = 128  # examples at least this long are not extended


@dataclass(frozen=True)
class Case:
    """One shape to compare on. `length` is of the sequences that the example gives as longest."""

    batch: int
    length: int | None  # None: no input has a sequence
    left_padded: bool = False
    others: tuple[tuple[str, int], ...] = ()  # further free axes of the graph: name, size

    def __str__(self) -> str:
        shape = f"{self.batch}" if self.length is None else f"{self.batch}x{self.length}"
        return " ".join([shape, *(f"{name}={size}" for name, size in self.others)])


def cases(
    batch: Batch, longest: int | None, ranges: Mapping[str, KnownAxis] | None = None
) -> tuple[Case, ...]:
    """Batches of 1 to 5; lengths 1, even, odd, the example's own, and a longer one if allowed.

    longest: the length that the network is known to take; None if only the example's is known.
    ranges: what is known of the graph's free axes, by name. Only sizes in them are drawn.
    """
    known = dict(ranges or {})
    lengths = [tensor.shape[1] for tensor in batch.values() if _is_sequence(tensor)]
    if not lengths:
        found = [Case(1, None), Case(2, None), Case(3, None), Case(5, None)]
    else:
        own = max(lengths)
        long = own if own >= _LONG or longest is None else min(2 * own + 1, max(own, longest))
        odd = max(1, (own // 2 - 1) | 1)
        found = [
            Case(1, 1),
            Case(1, odd),
            Case(3, odd + 1),
            Case(2, own, left_padded=True),
            Case(5, long),
        ]
    fitting = (_fitting(case, place, known) for place, case in enumerate(found))
    return tuple(dict.fromkeys(fitting))


def _fitting(case: Case, place: int, known: Mapping[str, KnownAxis]) -> Case:
    """The case in sizes that the graph takes, every other axis in several of them."""
    rows, length = case.batch, case.length
    if BATCH in known:
        rows = known[BATCH].range.nearest(rows)
    if SEQUENCE in known and length is not None:
        length = known[SEQUENCE].range.nearest(length)
    others = []
    for shift, (name, axis) in enumerate(known.items()):
        if name == BATCH or name.endswith(SEQUENCE):
            continue
        own, step, least = axis.size, axis.range.step, axis.range.least
        sizes = (max(least, own // 2), own, own + step, own // 2 + step, own + 2 * step)
        others.append((name, axis.range.nearest(sizes[(place + shift) % len(sizes)])))
    return Case(rows, length, case.left_padded, tuple(others))


def draw(
    batch: Batch,
    case: Case,
    fixed: Mapping[str, Mapping[int, int]],
    generator: torch.Generator,
    free: Mapping[str, Mapping[int, str]] | None = None,
    ranges: Mapping[str, KnownAxis] | None = None,
) -> Batch:
    """A batch of the case's shape whose values come from `batch`.

    fixed: axes whose size the graph prescribes: input -> axis -> size.
    free: the names of its other axes, of which `case.others` and `ranges` tell sizes.
    """
    rows = next((axes[0] for axes in fixed.values() if 0 in axes), case.batch)
    have = min(tensor.shape[0] for tensor in batch.values())
    picked = torch.randint(have, (rows,), generator=generator)
    longest = max((t.shape[1] for t in batch.values() if _is_sequence(t)), default=1)
    known, others = dict(ranges or {}), dict(case.others)
    sizes: dict[str, dict[int, int]] = {}
    for name, tensor in batch.items():
        named = (free or {}).get(name, {})
        own = {axis: others[label] for axis, label in named.items() if label in others}
        if _is_sequence(tensor) and case.length is not None:
            length = fixed.get(name, {}).get(1) or _scaled(case.length, tensor.shape[1], longest)
            if 1 not in fixed.get(name, {}) and named.get(1) in known:
                length = known[named[1]].range.nearest(length)
            own.setdefault(1, length)
        elif case.length is not None:  # such as embeddings in place of ids
            for axis, label in named.items():
                if label in known and label.endswith(SEQUENCE):
                    length = _scaled(case.length, tensor.shape[axis], longest)
                    own.setdefault(axis, known[label].range.nearest(length))
        sizes[name] = own
    return redrawn(batch, picked, sizes, generator, left_padded=case.left_padded)


def redrawn(
    batch: Batch,
    rows: Tensor,
    sizes: Mapping[str, Mapping[int, int]],
    generator: torch.Generator,
    *,
    left_padded: bool = False,
) -> Batch:
    """Examples `rows` of a batch, with axes cut or repeated to `sizes`: input -> axis -> size.

    A sequence that is given a length begins at a random place, and its mask gets other padding.
    """
    longest = max((t.shape[1] for t in batch.values() if _is_sequence(t)), default=1)
    offset = int(torch.randint(longest, (1,), generator=generator))
    drawn: Batch = {}
    for name, tensor in batch.items():
        values = tensor.cpu()[rows]
        asked = sizes.get(name, {})
        for axis, size in asked.items():
            start = offset if axis == 1 and _is_sequence(tensor) and _varies(tensor) else 0
            values = values.index_select(axis, (start + torch.arange(size)) % tensor.shape[axis])
        if _is_sequence(tensor) and 1 in asked:  # positions and types begin at their first
            if name.endswith(MASK):
                values = _padding(values, generator, left=left_padded)
        elif values.is_floating_point() and not bool((values == values.round()).all()):
            values = values * (1 + 0.05 * torch.randn(values.shape, generator=generator))
        drawn[name] = values.contiguous()
    return drawn


def _is_sequence(tensor: Tensor) -> bool:
    return tensor.dim() == 2 and not tensor.is_floating_point()


def _varies(tensor: Tensor) -> bool:
    return not bool((tensor == tensor[:1]).all())


def _scaled(length: int, own: int, longest: int) -> int:
    """A decoder's length beside its encoder's stays in proportion."""
    return max(1, round(length * own / longest))


def _padding(mask: Tensor, generator: torch.Generator, *, left: bool) -> Tensor:
    """Ones, then zeros from a random place on; the first row alone is not padded."""
    rows, length = mask.shape
    real = torch.randint(1, max(2, length), (rows, 1), generator=generator)
    real[0] = length
    positions = torch.arange(length).expand(rows, length)
    keep = positions >= length - real if left else positions < real
    return keep.to(mask.dtype)
