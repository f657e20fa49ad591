"""Residuals and losses of BLAST factors against a weight, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.factors import BlastFactors


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
