"""Sums over rows, from which second moments are taken.

Products are taken in float32 over one batch and summed in float64, so the rounding of a moment
does not grow with the number of batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FULL_MOMENT_LIMIT = 8192  # features; beyond it (vocabularies) only the diagonal is kept


@dataclass
class RunningMoment:
    """Sums over the rows of one side of one layer."""

    second: Tensor | None = None  # (g, k, k), or its diagonal (g, k)
    first: Tensor | None = None  # (g, k)
    absolute: Tensor | None = None  # (g, k)
    rows: int = 0

    def add(self, rows: Tensor) -> None:
        """rows: (count, g, k)."""
        count, groups, k = rows.shape
        rows = rows.detach().to(torch.float32)
        if self.second is None or self.first is None or self.absolute is None:
            shape = (groups, k, k) if k <= FULL_MOMENT_LIMIT else (groups, k)
            self.second = torch.zeros(shape, dtype=torch.float64, device=rows.device)
            self.first = self.second.new_zeros((groups, k))
            self.absolute = self.second.new_zeros((groups, k))
        if self.second.dim() == 3:
            by_group = rows.transpose(0, 1)  # (g, count, k)
            self.second += torch.bmm(by_group.mT, by_group)
        else:
            self.second += rows.square().sum(0)
        self.first += rows.sum(0)
        self.absolute += rows.abs().sum(0)
        self.rows += count

    def add_tokens(self, tokens: Tensor, vocabulary: int) -> None:
        """One-hot inputs: the moment is diagonal, and its own mean."""
        counts = torch.bincount(tokens.flatten(), minlength=vocabulary).to(torch.float64)[None]
        self.second = counts if self.second is None else self.second + counts
        self.first = self.absolute = self.second
        self.rows += tokens.numel()
