"""Half a sweep of the weighted fit: update the left factors of a BLAST weight row by row of blocks.

The loss is 1/2 tr(E^T G E C) with E = W - W_hat, where G and C have identity diagonal blocks
(`BlockMetric`). With the others fixed, row i of blocks has the minimum
    U_i += (G_i E) C K_i^T (K_i C K_i^T)^-1,    K_i = [diag(s_i1) V_1^T ... diag(s_ib) V_b^T]
and s_i takes a step of optimal length along its block-Jacobi direction. G E needs no product with
the dense weight: G W is known, and block ij of G W_hat is [sum_k G_ik U_k diag(s_kj)] V_j^T. The
other half of the sweep is the same function on the transposed problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.factors import BlastFactors
from lrcompress.structures.solve import cholesky

_RIDGE = 8.0  # for a Gram matrix scaled to unit diagonal, in units of the dtype's epsilon


@dataclass(frozen=True, eq=False)
class Coupled:
    """A weight W (b_out p, b_in q) in a metric whose moments couple its blocks.

    outer, inner: G and C, None for the identity. products: G W and C W^T.
    """

    outer: Tensor | None
    inner: Tensor | None
    products: tuple[Tensor, Tensor]

    @classmethod
    def of(cls, weight: Tensor, outer: Tensor | None, inner: Tensor | None) -> Coupled:
        first = weight if outer is None else outer @ weight
        second = weight.mT if inner is None else inner @ weight.mT
        return cls(outer, inner, (first, second))

    @property
    def transposed(self) -> Coupled:
        return Coupled(self.inner, self.outer, self.products[::-1])

    def loss(self, factors: BlastFactors) -> float:
        """Return tr(E^T G E C) = <G E, E C>. factors: those of a single weight."""
        p, q = factors.left.shape[2], factors.right.shape[2]
        pulls = [
            _pull(self.products[0], self.outer, factors, i) for i in range(factors.left.shape[1])
        ]
        total = 0.0
        for j in range(factors.right.shape[1]):
            pull = _pull(self.products[1], self.inner, factors.transposed, j)  # (q, b_out p)
            for i, other in enumerate(pulls):
                block = other[:, j * q : (j + 1) * q] * pull[:, i * p : (i + 1) * p].mT
                total += float(block.sum(dtype=torch.float64))
        return total


def improve_rows_(problem: Coupled, factors: BlastFactors, *, with_diag: bool) -> None:
    """Lower the loss over U, and s if `with_diag`, in place. factors: those of a single weight."""
    inner = problem.inner
    left, diag, right = factors.left[0], factors.diag[0], factors.right[0]
    p, rank = left.shape[1:]
    images = None if inner is None else _images(inner, right)
    grams = right.mT @ right if with_diag else right  # V_j^T C_jj V_j: (b_in, r, r)
    for i in range(left.shape[0]):
        pull = _pull(problem.products[0], problem.outer, factors, i)
        row = _row(right, diag[i])  # K_i^T: (n, r)
        image = row if images is None else _weighted_sum(images, diag[i])  # C K_i^T
        step = _solve(row.mT @ image, (pull @ image).mT).mT  # (p, r)
        left[i] += step
        if not with_diag:
            continue
        pull.addmm_(step, row.mT, alpha=-1)  # G_ii = I
        slope = _slope(pull.mT @ left[i], right, images)  # (b_in, r)
        gram = left[i].mT @ left[i]
        towards = _solve(gram * grams, slope.unsqueeze(-1)).squeeze(-1)  # (b_in, r)
        row = _row(right, towards)
        image = row if images is None else _weighted_sum(images, towards)
        if 2 * p < rank:  # the cheaper order of tr(U K C K^T U^T)
            curvature = torch.sum((left[i] @ row.mT) * (left[i] @ image.mT))
        else:
            curvature = (gram * (row.mT @ image)).sum()
        rise = (slope * towards).sum()
        diag[i] += torch.where(curvature > 0, rise / curvature, 0.0) * towards


def _pull(product: Tensor, outer: Tensor | None, factors: BlastFactors, i: int) -> Tensor:
    """Return row i of blocks of G E: (p, n). product: G W."""
    left, diag, right = factors.left[0], factors.diag[0], factors.right[0]
    p, q = left.shape[1], right.shape[1]
    rows = slice(i * p, (i + 1) * p)
    if outer is None:
        return torch.addmm(product[rows], left[i], _row(right, diag[i]).mT, alpha=-1)
    images = outer[rows].view(p, -1, p).transpose(0, 1) @ left  # G_ik U_k: (b_out, p, r)
    pull = product[rows].clone()
    for j in range(right.shape[0]):
        image = _weighted_sum(images, diag[:, j])  # (p, r)
        pull[:, j * q : (j + 1) * q].addmm_(image, right[j].mT, alpha=-1)
    return pull


def _slope(back: Tensor, right: Tensor, images: Tensor | None) -> Tensor:
    """Return diag(V_j^T C_j X) for X = E^T G_i^T U_i (n, r): (b_in, r). images: from `_images`."""
    if images is None:
        return (back.view_as(right) * right).sum(1)
    return torch.stack([(image * back).sum(0) for image in images])


def _row(right: Tensor, diag: Tensor) -> Tensor:
    """Stack the blocks V_j diag(s_j): (b_in q, r)."""
    return (right * diag.unsqueeze(1)).flatten(0, 1)


def _images(inner: Tensor, right: Tensor) -> Tensor:
    """Return C_j V_j, with C_j the block column j of C: (b_in, b_in q, r)."""
    b_in, q, rank = right.shape
    out = right.new_empty(b_in, b_in * q, rank)
    for j in range(b_in):
        torch.mm(inner[:, j * q : (j + 1) * q], right[j], out=out[j])
    return out


def _weighted_sum(images: Tensor, diag: Tensor) -> Tensor:
    """Return sum_j images_j diag(s_j): (n, r)."""
    total = images[0] * diag[0]
    for image, scale in zip(images[1:], diag[1:], strict=True):
        total.addcmul_(image, scale)
    return total


def _solve(gram: Tensor, rhs: Tensor) -> Tensor:
    """Return gram^-1 rhs, slightly damped; gram: (..., r, r). Damping only shortens the step.

    Factor columns may differ in size by orders of magnitude, so they are first scaled to one.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0).rsqrt().unsqueeze(-1)
    unit = gram * scale * scale.mT
    unit.diagonal(dim1=-2, dim2=-1).add_(_RIDGE * torch.finfo(gram.dtype).eps)
    factor, failed = torch.linalg.cholesky_ex(unit)
    if bool(failed.any()):
        factor = cholesky(unit)
    return torch.cholesky_solve(rhs * scale, factor) * scale
