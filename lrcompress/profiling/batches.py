"""Calibration batches: named forward arguments, examples first."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

Batch = dict[str, Tensor]
Batches = Sequence[Batch]  # iterated more than once

MASK = "attention_mask"  # 1 where an example has a token, 0 on padding


def batch_size(batch: Batch) -> int:
    """Examples in a batch."""
    return len(next(iter(batch.values())))


def token_count(batches: Batches) -> int:
    """Unpadded positions of the token ids: whole numbers by example and position.

    0 where there are none: images and arrays are counted in examples alone.
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
