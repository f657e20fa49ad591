"""Running sums over rows, from which second moments are computed.

Products are computed in float32 for one batch and summed in float64, so the rounding error of a
moment does not grow with the number of batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrcompress.profiling.second_moment import SecondMoment

FULL_MOMENT_LIMIT = 8192  # features; above it (vocabularies) only the diagonal is kept


@dataclass
class InputMoment:
    """Sums over the rows of one side of one layer."""

    seconds: SecondMoment = field(default_factory=SecondMoment)
    first: Tensor | None = None  # (g, k)
    absolute: Tensor | None = None  # (g, k)
    rows: int = 0

    def add(self, rows: Tensor) -> None:
        """Add rows: (count, g, k)."""
        count, groups, k = rows.shape
        rows = rows.detach().to(torch.float32)
        if self.first is None or self.absolute is None:
            self.first = torch.zeros((groups, k), dtype=torch.float64, device=rows.device)
            self.absolute = self.first.clone()
        by_group = rows.transpose(0, 1)[None]  # (1, g, count, k)
        self.seconds.add(by_group, by_group, FULL_MOMENT_LIMIT)
        self.first += rows.sum(0)
        self.absolute += rows.abs().sum(0)
        self.rows += count

    def add_tokens(self, tokens: Tensor, vocabulary: int) -> None:
        """Add one-hot inputs: their second moment is diagonal and equals their sum."""
        counts = torch.bincount(tokens.flatten(), minlength=vocabulary).to(torch.float64)[None]
        self.seconds.add_diagonal(counts)
        self.first = self.absolute = self.seconds.diagonal
        self.rows += tokens.numel()
