"""How far BLAST factors are from a weight, block by block."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.factors import BlastFactors


def residual_rows(weight: Tensor, factors: BlastFactors, row: int) -> Tensor:
    """W - W_hat in one row of blocks: (batch, p, b_in, q). weight: (batch, b_out p, b_in q)."""
    p = factors.left.shape[2]
    batch, b_in, q, _ = factors.right.shape
    scaled = factors.right * factors.diag[:, row, :, None]  # (batch, b_in, q, r)
    known = factors.left[:, row] @ scaled.flatten(1, 2).mT  # (batch, p, b_in q)
    return (weight[:, row * p : (row + 1) * p] - known).view(batch, p, b_in, q)


def block_losses(weight: Tensor, factors: BlastFactors) -> Tensor:
    """||W_ij - U_i diag(s_ij) V_j^T||^2: (batch, b_out, b_in)."""
    rows = range(factors.left.shape[1])
    found = [residual_rows(weight, factors, i).square().sum((1, 3)) for i in rows]
    return torch.stack(found, 1)


def residual(weight: Tensor, factors: BlastFactors) -> Tensor:
    """W - W_hat: (batch, b_out p, b_in q)."""
    rows = range(factors.left.shape[1])
    return torch.cat([residual_rows(weight, factors, i).flatten(2) for i in rows], 1)
