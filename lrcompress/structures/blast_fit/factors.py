"""The factors of a BLAST weight, and conversion between a weight and its blocks.

W_ij ~ U_i diag(s_ij) V_j^T over a grid of b_out x b_in blocks (Lee, Kwon, Qu, Kim, NeurIPS 2024,
eq. 1). A weight that the grid does not divide is padded with zeros at its far edges.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional


@dataclass(frozen=True, eq=False)
class BlastFactors:
    """The factors of several weights of one shape: layers fitted together, or groups of a layer."""

    left: Tensor  # U: (batch, b_out, p, r)
    diag: Tensor  # s: (batch, b_out, b_in, r)
    right: Tensor  # V: (batch, b_in, q, r)

    @property
    def rank(self) -> int:
        return self.diag.shape[-1]

    @property
    def transposed(self) -> BlastFactors:
        """Factors of W^T."""
        return BlastFactors(self.right, self.diag.transpose(1, 2), self.left)

    def dense(self, m: int, n: int) -> Tensor:
        """Return the weights without padding: (batch, m, n)."""
        batch, b_out, p, rank = self.left.shape
        b_in, q = self.right.shape[1:3]
        # One row of blocks at a time: (batch, b_out, b_in, q, r) would take r / p times the memory
        # of the weight
        weight = self.left.new_empty(batch, b_out * p, b_in * q)
        for i in range(b_out):
            scaled = self.right * self.diag[:, i, :, None]  # (batch, b_in, q, r)
            flat = scaled.reshape(batch, b_in * q, rank)
            weight[:, i * p : (i + 1) * p] = self.left[:, i] @ flat.mT
        return weight[:, :m, :n]

    def balanced(self) -> BlastFactors:
        """Factors of the same weights whose scales are balanced for each rank index.

        s has mean square one, and all columns of U and V have one norm. Only the product of the
        three scales is determined, and an alternating fit leaves them arbitrary. A factor that is
        large where the product is not would lose range in float16.
        """
        left, right = (_norms(f) for f in (self.left, self.right))  # (batch, b, 1, r)
        diag = self.diag * left * right.transpose(1, 2)  # (batch, b_out, b_in, r)
        size = diag.square().mean((1, 2), keepdim=True).sqrt()  # (batch, 1, 1, r)
        half = size.sqrt()
        return BlastFactors(
            self.left / _positive(left) * half,
            diag / _positive(size),
            self.right / _positive(right) * half,
        )

    def to(self, like: Tensor) -> BlastFactors:
        return BlastFactors(self.left.to(like), self.diag.to(like), self.right.to(like))


def block_length(length: int, blocks: int) -> int:
    """Number of rows or columns of a block, with padding."""
    return -(-length // blocks)


def blocks_of(weight: Tensor, b_out: int, b_in: int) -> Tensor:
    """Split weights into blocks: (batch, m, n) -> (batch, b_out, b_in, p, q), zero-padded."""
    batch, m, n = weight.shape
    p, q = block_length(m, b_out), block_length(n, b_in)
    padded = functional.pad(weight, (0, b_in * q - n, 0, b_out * p - m))
    return padded.reshape(batch, b_out, p, b_in, q).transpose(2, 3)


def _norms(factor: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(factor, dim=2, keepdim=True)
    return norms


def _positive(size: Tensor) -> Tensor:
    """Replace zeros by one, for use as a divisor."""
    return torch.where(size > 0, size, torch.ones_like(size))
