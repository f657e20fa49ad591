"""Calibration batches: named forward arguments, examples first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor

_T = TypeVar("_T")

Batch = dict[str, Tensor]
Batches = Sequence[Batch]  # iterated more than once

MASK = "attention_mask"  # 1 where an example has a token, 0 on padding


def batch_size(batch: Batch) -> int:
    """Number of examples in a batch."""
    return len(next(iter(batch.values())))


def token_count(batches: Batches) -> int:
    """Number of unpadded token ids. Token ids are integers: (examples, positions).

    0 where there are none: images and arrays are only counted in examples.
    """
    return sum(map(_tokens, batches))


def _tokens(batch: Batch) -> int:
    ids = [
        tensor
        for name, tensor in batch.items()
        if name != MASK and tensor.dim() == 2 and not tensor.is_floating_point()
        if tensor.dtype != torch.bool
    ]
    if not ids:
        return 0
    mask = batch.get(MASK)
    if mask is not None and mask.shape == ids[0].shape:
        return int(mask.sum())
    return max(tensor.numel() for tensor in ids)


def examples_of(batch: Batch, start: int, stop: int) -> Batch:
    """Examples `start` to `stop` of a batch. Tensors without one row per example stay whole."""
    count = batch_size(batch)
    return {
        name: tensor[start:stop] if tensor.dim() and len(tensor) == count else tensor
        for name, tensor in batch.items()
    }


def is_divisible(batch: Batch) -> bool:
    """Whether every tensor has one row per example, so that a part of the batch is a batch."""
    count = batch_size(batch)
    return all(tensor.dim() > 0 and len(tensor) == count for tensor in batch.values())


def spread_examples(batches: Batches, examples: int) -> list[Batch]:
    """Return batches of about `examples` examples in all, evenly spread (sorted by length)."""
    largest = max(batch_size(batch) for batch in batches)
    parts = max(1, min(len(batches), -(-examples // largest), examples))
    if examples < 2 * largest:  # take examples of several lengths, not one batch of one length
        parts = max(1, min(len(batches), examples, 4))
    each = max(1, examples // parts)
    chosen = evenly_spread(batches, parts)
    return [examples_of(b, 0, each) if is_divisible(b) else b for b in chosen]


def evenly_spread(items: Sequence[_T], count: int) -> list[_T]:
    """Return `count` of the items, evenly spread; repeated where there are fewer."""
    return [items[(2 * k + 1) * len(items) // (2 * count)] for k in range(count)]


def positions_first(mask: Tensor | None, positions: torch.Size) -> bool:
    """Whether the layout is (positions, examples), as in torch's recurrent layers."""
    return mask is not None and mask.shape != positions and mask.T.shape == positions


def without_padding(rows: Tensor, positions: torch.Size, mask: Tensor | None) -> Tensor:
    """Drop a layer's padding rows: (*positions, ...) -> (kept, ...).

    mask: (examples, positions), true for tokens. If its shape does not fit the rows (pooled
    vectors, a position table), all rows are kept.
    """
    flat = rows.reshape(positions.numel(), *rows.shape[len(positions) :])
    if mask is not None and positions_first(mask, positions):
        mask = mask.T
    if mask is None or (mask.shape != positions and (mask.numel(),) != tuple(positions)):
        return flat
    return flat[mask.flatten().to(flat.device)]
