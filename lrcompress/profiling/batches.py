"""Calibration batches: named forward arguments, examples first."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Batch = dict[str, Tensor]
Batches = Sequence[Batch]  # iterated more than once


def batch_size(batch: Batch) -> int:
    """Examples in a batch."""
    return len(next(iter(batch.values())))
