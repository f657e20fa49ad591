"""Sums of symmetric products. Only upper blocks are computed, little more than half the work."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

BLOCK = 256  # columns; narrower blocks save little more and make the products slow


class SymmetricSum:
    """The sum of products L^T R, which must be symmetric; L, R: (g, rows, k).

    The products have the dtype of L and R (float32), and the sum is float64, so that its rounding
    error does not grow with the number of terms.
    """

    def __init__(self, groups: int, features: int, device: torch.device) -> None:
        with torch.inference_mode(False):  # a hook may run in inference mode; the sum outlives it
            self._sum = torch.zeros(
                (groups, features, features), dtype=torch.float64, device=device
            )  # (g, k, k), valid in its upper blocks

    def add(self, left: Tensor, right: Tensor) -> None:
        features = left.shape[-1]
        for start in range(0, features, BLOCK):
            end = min(start + BLOCK, features)
            product = left[..., start:end].mT @ right[..., start:]  # (g, block, the rest)
            self._sum[:, start:end, start:] += product

    def whole(self) -> Tensor:
        """Return the sum (g, k, k), not a copy: later calls of `add` change its upper blocks."""
        features = self._sum.shape[-1]
        for start in range(0, features, BLOCK):
            end = min(start + BLOCK, features)
            # Both halves of a diagonal block are computed, and differ only by rounding
            self._sum[:, end:, start:end] = self._sum[:, start:end, end:].mT
        return self._sum


@dataclass
class SecondMoment:
    """A running sum over examples of symmetric products, or of only their diagonals."""

    full: SymmetricSum | None = None  # (g, k, k)
    diagonal: Tensor | None = None  # (g, k)

    def add(self, left: Tensor, right: Tensor, full_limit: int) -> None:
        """Add sum_e L^T R, only its diagonal above `full_limit` features; L, R: (e, g, t, k)."""
        groups, k = left.shape[1], left.shape[-1]
        if k > full_limit:  # one example at a time, because a vocabulary is large
            for a, b in zip(left, right, strict=True):
                self.add_diagonal((a * b).sum(1))
            return
        if self.full is None:
            self.full = SymmetricSum(groups, k, left.device)
        self.full.add(_by_group(left), _by_group(right))

    def add_diagonal(self, term: Tensor) -> None:
        """Add to the diagonal. term: (g, k)."""
        wide = term.to(torch.float64)
        self.diagonal = wide if self.diagonal is None else self.diagonal + wide

    def whole(self) -> Tensor | None:
        """Return the sum (g, k, k) or its diagonal (g, k); None if nothing was added."""
        return self.diagonal if self.full is None else self.full.whole()


def trace(moment: Tensor) -> Tensor:
    """Return the trace of each group in float64: (g, k, k), or (g, k) for a diagonal, -> (g,)."""
    diagonal = moment if moment.dim() == 2 else moment.diagonal(dim1=-2, dim2=-1)
    return diagonal.to(torch.float64).sum(-1)


def _by_group(rows: Tensor) -> Tensor:
    """(e, g, t, k) -> (g, e t, k)."""
    return rows.transpose(0, 1).flatten(1, 2)
