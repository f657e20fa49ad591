"""Calibration batches: named forward arguments, examples first."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

Batch = dict[str, Tensor]
Batches = Sequence[Batch]  # iterated more than once
