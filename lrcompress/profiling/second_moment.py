"""Sums of symmetric products, of which only the upper blocks are computed: little more than half
of the work."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256  # columns; narrower ones save no more and make the products slow


class SymmetricSum:
    """sum L^T R, which is known to be symmetric; L, R: (g, rows, k).

    The products are float32, or what they come in, and the sum float64: its rounding does not grow
    with the number of terms.
    """

    def __init__(self, groups: int, features: int, device: torch.device) -> None:
        with torch.inference_mode(False):  # a hook may run in it, and the sum outlives it
            self._sum = torch.zeros(
                (groups, features, features), dtype=torch.float64, device=device
            )  # (g, k, k), true in its upper blocks

    def add(self, left: Tensor, right: Tensor) -> None:
        features = left.shape[-1]
        for start in range(0, features, BLOCK):
            end = min(start + BLOCK, features)
            product = left[..., start:end].mT @ right[..., start:]  # (g, block, the rest)
            self._sum[:, start:end, start:] += product

    def whole(self) -> Tensor:
        """The sum itself, (g, k, k), not a copy: what is added later shows in its upper blocks."""
        features = self._sum.shape[-1]
        for start in range(0, features, BLOCK):
            end = min(start + BLOCK, features)
            # Within a block rounding alone makes both halves differ
            self._sum[:, end:, start:end] = self._sum[:, start:end, end:].mT
        return self._sum


@dataclass
class SecondMoment:
    """A running sum over examples of symmetric products, or of their diagonals alone."""

    full: SymmetricSum | None = None  # (g, k, k)
    diagonal: Tensor | None = None  # (g, k)

    def add(self, left: Tensor, right: Tensor, full_limit: int) -> None:
        """sum_e L^T R, in full up to `full_limit` features; L, R: (e, g, t, k)."""
        groups, k = left.shape[1], left.shape[-1]
        if k > full_limit:  # example by example: a vocabulary is wide
            for a, b in zip(left, right, strict=True):
                self.add_diagonal((a * b).sum(1))
            return
        if self.full is None:
            self.full = SymmetricSum(groups, k, left.device)
        self.full.add(_by_group(left), _by_group(right))

    def add_diagonal(self, term: Tensor) -> None:
        """term: (g, k)."""
        wide = term.to(torch.float64)
        self.diagonal = wide if self.diagonal is None else self.diagonal + wide

    def whole(self) -> Tensor | None:
        """(g, k, k) or diagonal (g, k); None before anything was added."""
        return self.diagonal if self.full is None else self.full.whole()


def _by_group(rows: Tensor) -> Tensor:
    """(e, g, t, k) -> (g, e t, k)."""
    return rows.transpose(0, 1).flatten(1, 2)
