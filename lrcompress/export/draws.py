"""Inputs to compare on: rows, windows and padding drawn from an example, in other sizes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.profiling.batches import Batch

MASK = "attention_mask"  # by contract (batch, length), 0 on padding
_LONG = 128  # examples at least this long are not extended


@dataclass(frozen=True)
class Case:
    """One shape to compare on. `length` is of the sequences that the example gives as longest."""

    batch: int
    length: int | None  # None: no input has a sequence
    left_padded: bool = False

    def __str__(self) -> str:
        return f"{self.batch}" if self.length is None else f"{self.batch}x{self.length}"


def cases(batch: Batch, longest: int | None) -> tuple[Case, ...]:
    """Batches of 1 to 5; lengths 1, even, odd, the example's own, and a longer one if allowed.

    longest: the length that the network is known to take; None if only the example's is known.
    """
    lengths = [tensor.shape[1] for tensor in batch.values() if _is_sequence(tensor)]
    if not lengths:
        return (Case(1, None), Case(2, None), Case(3, None), Case(5, None))
    own = max(lengths)
    long = own if own >= _LONG or longest is None else min(2 * own + 1, max(own, longest))
    odd = max(1, (own // 2 - 1) | 1)
    return (
        Case(1, 1),
        Case(1, odd),
        Case(3, odd + 1),
        Case(2, own, left_padded=True),
        Case(5, long),
    )


def draw(
    batch: Batch,
    case: Case,
    fixed: Mapping[str, Mapping[int, int]],
    generator: torch.Generator,
) -> Batch:
    """A batch of the case's shape whose values come from `batch`.

    fixed: axes whose size the graph prescribes: input -> axis -> size.
    """
    rows = next((axes[0] for axes in fixed.values() if 0 in axes), case.batch)
    have = min(tensor.shape[0] for tensor in batch.values())
    picked = torch.randint(have, (rows,), generator=generator)
    longest = max((t.shape[1] for t in batch.values() if _is_sequence(t)), default=1)
    offset = int(torch.randint(longest, (1,), generator=generator))
    drawn: Batch = {}
    for name, tensor in batch.items():
        values = tensor.cpu()[picked]
        if _is_sequence(tensor) and case.length is not None:
            length = fixed.get(name, {}).get(1) or _scaled(case.length, tensor.shape[1], longest)
            start = offset if _varies(tensor) else 0  # positions and types begin at their first
            values = values[:, (start + torch.arange(length)) % tensor.shape[1]]
            if name.endswith(MASK):
                values = _padding(values, generator, left=case.left_padded)
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
    """Ones, then zeros from a random place on; the first row is not padded."""
    rows, length = mask.shape
    real = torch.randint(1, length + 1, (rows, 1), generator=generator)
    real[0] = length
    positions = torch.arange(length).expand(rows, length)
    keep = positions >= length - real if left else positions < real
    return keep.to(mask.dtype)
