"""Half a sweep of the weighted fit: the left factors of a BLAST weight, one row of blocks after
the other.

The loss is 1/2 tr(E^T G E C) of the residual E, where G and C have identities as diagonal blocks
(`BlockMetric`). With the others fixed, row i of blocks has the minimum
    U_i += (G_i E) C K_i^T (K_i C K_i^T)^-1,    K_i = [diag(s_i1) V_1^T ... diag(s_ib) V_b^T]
and s_i takes a step along its block-Jacobi direction, exact in length. E is kept up to date, so
rounding never adds up beyond a sweep, and no Gram matrix of all blocks is formed. The other half is
the same function on everything transposed.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.factors import BlastFactors
from lrcompress.structures.solve import cholesky

_RIDGE = 8.0  # of a Gram matrix scaled to a diagonal of ones, in units of the dtype's epsilon


def improve_rows_(
    residual: Tensor,
    factors: BlastFactors,
    outer: Tensor | None,
    inner: Tensor | None,
    *,
    with_diag: bool,
) -> None:
    """Lower the loss over U, and s if asked for; in place, as in the residual.

    residual: (b_out p, b_in q), it may be a transposed view; factors: of a single weight;
    outer, inner: G and C, None for the identity.
    """
    left, diag, right = factors.left[0], factors.diag[0], factors.right[0]
    p, rank = left.shape[1:]
    images = None if inner is None else _images(inner, right)
    grams = right.mT @ right if with_diag else right  # V_j^T C_jj V_j: (b_in, r, r)
    for i in range(left.shape[0]):
        part = residual[i * p : (i + 1) * p]  # (p, n)
        pull = part if outer is None else outer[i * p : (i + 1) * p] @ residual
        row = _row(right, diag[i])  # K_i^T: (n, r)
        image = row if images is None else _weighted_sum(images, diag[i])  # C K_i^T
        step = _solve(row.mT @ image, (pull @ image).mT).mT  # (p, r)
        left[i] += step
        part.addmm_(step, row.mT, alpha=-1)
        if not with_diag:
            continue
        if pull is not part:
            pull.addmm_(step, row.mT, alpha=-1)  # G_ii = I
        slope = _through(inner, pull.mT, left[i], shorter=rank < p)  # C E^T G_i^T U_i: (n, r)
        slope = (slope.view_as(right) * right).sum(1)  # (b_in, r)
        gram = left[i].mT @ left[i]
        towards = _solve(gram * grams, slope.unsqueeze(-1)).squeeze(-1)  # (b_in, r)
        row = _row(right, towards)
        image = row if images is None else _weighted_sum(images, towards)
        curvature = (gram * (row.mT @ image)).sum()
        rise = (slope * towards).sum()
        length = torch.where(curvature > 0, rise / curvature, torch.zeros_like(rise))
        diag[i] += length * towards
        part.addmm_(left[i] * -length, row.mT)


def subtract_(weight: Tensor, factors: BlastFactors) -> None:
    """weight (b_out p, b_in q) becomes the residual; factors: of a single weight."""
    left, diag, right = factors.left[0], factors.diag[0], factors.right[0]
    p = left.shape[1]
    for i in range(left.shape[0]):
        weight[i * p : (i + 1) * p].addmm_(left[i], _row(right, diag[i]).mT, alpha=-1)


def coupled_loss(residual: Tensor, outer: Tensor | None, inner: Tensor | None, p: int) -> float:
    """tr(E^T G E C), `p` rows at a time."""
    total = 0.0
    for start in range(0, residual.shape[0], p):
        part = residual[start : start + p]
        pull = part if outer is None else outer[start : start + p] @ residual
        pull = pull if inner is None else pull @ inner
        total += float((part * pull).sum(dtype=torch.float64))
    return total


def _row(right: Tensor, diag: Tensor) -> Tensor:
    """The blocks V_j diag(s_j) below each other: (b_in q, r)."""
    return (right * diag.unsqueeze(1)).flatten(0, 1)


def _images(inner: Tensor, right: Tensor) -> Tensor:
    """C_j V_j, columns j of C: (b_in, b_in q, r)."""
    b_in, q, rank = right.shape
    out = right.new_empty(b_in, b_in * q, rank)
    for j in range(b_in):
        torch.mm(inner[:, j * q : (j + 1) * q], right[j], out=out[j])
    return out


def _weighted_sum(images: Tensor, diag: Tensor) -> Tensor:
    """sum_j images_j diag(s_j): (n, r)."""
    total = images[0] * diag[0]
    for image, scale in zip(images[1:], diag[1:], strict=True):
        total.addcmul_(image, scale)
    return total


def _through(inner: Tensor | None, first: Tensor, second: Tensor, *, shorter: bool) -> Tensor:
    """inner first second, in the cheaper order: `shorter` if `second` has fewer columns."""
    if inner is None:
        return first @ second
    return inner @ (first @ second) if shorter else (inner @ first) @ second


def _solve(gram: Tensor, rhs: Tensor) -> Tensor:
    """gram^-1 rhs, damped a little; gram: (..., r, r). A step, so damping only shortens it.

    Columns of factors may differ in size by orders of magnitude: they are scaled to one first.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).rsqrt().unsqueeze(-1)
    unit = gram * scale * scale.mT
    unit.diagonal(dim1=-2, dim2=-1).add_(_RIDGE * torch.finfo(gram.dtype).eps)
    factor, failed = torch.linalg.cholesky_ex(unit)
    if bool(failed.any()):
        factor = cholesky(unit)
    return torch.cholesky_solve(rhs * scale, factor) * scale
