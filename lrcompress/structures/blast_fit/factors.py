"""The factors of a BLAST weight, their scales and their residual.

W_ij ~ U_i diag(s_ij) V_j^T over a grid of b_out x b_in blocks (Lee, Kwon, Qu, Kim, NeurIPS 2024,
eq. 1). A weight that the grid does not divide is padded with zeros at its far edges.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class BlastFactors(NamedTuple):
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
        return BlastFactors(*(part.to(like) for part in self))

    def of_weights(self, chosen: slice) -> BlastFactors:
        """Factors of some weights of the batch."""
        return BlastFactors(*(part[chosen] for part in self))

    def scaled(self, scale: Tensor) -> BlastFactors:
        """Factors of the weights times `scale` (batch, 1, 1), which U and V share evenly."""
        root = scale.sqrt().unsqueeze(-1)
        return BlastFactors(self.left * root, self.diag, self.right * root)


def block_length(length: int, blocks: int) -> int:
    """Number of rows or columns of a block, with padding."""
    return -(-length // blocks)


def block_losses(weight: Tensor, factors: BlastFactors) -> Tensor:
    """||W_ij - U_i diag(s_ij) V_j^T||^2: (batch, b_out, b_in). weight: (batch, b_out p, b_in q)."""
    batch, b_out, b_in, _ = factors.diag.shape
    losses = weight.new_empty(batch, b_out, b_in)
    for index in range(batch):
        for i in range(b_out):
            for j in range(b_in):
                block = _residual_block(weight, factors, index, i, j)
                losses[index, i, j] = torch.linalg.vector_norm(block).square()
    return losses


def residual(weight: Tensor, factors: BlastFactors) -> Tensor:
    """W - W_hat: (batch, b_out p, b_in q)."""
    batch, b_out, p, _ = factors.left.shape
    _, b_in, q, _ = factors.right.shape
    out = torch.empty_like(weight)
    for index in range(batch):
        for i in range(b_out):
            for j in range(b_in):
                block = _residual_block(weight, factors, index, i, j)
                out[index, i * p : (i + 1) * p, j * q : (j + 1) * q] = block
    return out


def _residual_block(weight: Tensor, factors: BlastFactors, index: int, i: int, j: int) -> Tensor:
    """The residual of one block. A row of blocks would take half of the weight's memory."""
    left, right = factors.left[index, i], factors.right[index, j]  # (p, r), (q, r)
    p, q = left.shape[0], right.shape[0]
    block = weight[index, i * p : (i + 1) * p, j * q : (j + 1) * q]
    return torch.addmm(block, left * factors.diag[index, i, j], right.mT, alpha=-1)


def _norms(factor: Tensor) -> Tensor:
    norms: Tensor = torch.linalg.vector_norm(factor, dim=2, keepdim=True)
    return norms


def _positive(size: Tensor) -> Tensor:
    """Replace zeros by one, for use as a divisor."""
    return torch.where(size > 0, size, 1.0)
