"""One half of an alternating sweep: solve for U of a BLAST weight, and improve s, for given V.

Each row i of blocks is then a separate problem, with U_i and s_i1 ... s_ib unknown:
    U_i  = [sum_j Y_ij diag(s_ij)] [sum_j (s_ij s_ij^T) * (V_j^T V_j)]^-1
    s_ij = [(U_i^T U_i) * (V_j^T V_j)]^-1 diag(U_i^T Y_ij)           with Y_ij = W_ij V_j
(* is elementwise). Both use the same Y, one product with the dense weight. The other half of the
sweep is the same function on the transposed weight and factors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.factors import BlastFactors
from lrcompress.structures.solve import pcg, rows_solved, solve_spd

# Rows of blocks are processed together up to this many scalars, or a quarter of the weight's. Fewer
# is slow (many small operations); more would take many times the weight's memory.
_AT_ONCE = 1 << 20

# Up to this many blocks, more steps for s gain nothing, as U and V change next.
_FEW_BLOCKS = 64

# Ridge relative to each diagonal entry of a Gram matrix, in units of the dtype's epsilon: scales of
# the components do not matter. It suffices for Cholesky unless components coincide. Singular
# systems go to `solve_spd`.
_RIDGE = 8.0


def solve_left(weight: Tensor, factors: BlastFactors, gram: Tensor) -> Tensor:
    """Solve for the best U. weight: (batch, b_out p, b_in q), padded; may be a transposed view.

    gram: `grams(factors.right)`, (batch, b_in, r, r).
    """
    left = torch.empty_like(factors.left)
    for rows in row_chunks(weight, factors):
        products = right_products(weight, factors, rows)  # Y: (batch, b_in, rows, p, r)
        systems, rhs = left_systems(products, factors.diag[:, rows], gram)
        left[:, rows] = _solved(systems, rhs, factors.left[:, rows])
    return left


def solve_left_and_diag(
    weight: Tensor, factors: BlastFactors, left_gram: Tensor | None
) -> tuple[BlastFactors, Tensor]:
    """Improve s by one or two steps of conjugate gradients, then solve for the best U.

    left_gram: `grams(factors.left)`, (batch, b_out, r, r), or None to compute it. Returns the
    factors and ||W||^2 - ||W - W_hat||^2, (batch,), which is computed from the normal equations.
    """
    gram = grams(factors.right)
    left, diag = torch.empty_like(factors.left), factors.diag.clone()
    gain = torch.zeros_like(weight[:, 0, 0])
    steps = 1 if diag.shape[1] * diag.shape[2] <= _FEW_BLOCKS else 2
    for rows in row_chunks(weight, factors):
        products = right_products(weight, factors, rows)
        before = factors.left[:, rows]
        own = grams(before) if left_gram is None else left_gram[:, rows]
        for columns in _column_chunks(weight, factors, rows):
            equations = diag_systems(products[:, columns], before, own, gram[:, columns])
            diag[:, rows, columns] = _improved_diag(*equations, diag[:, rows, columns], steps)
        systems, rhs = left_systems(products, diag[:, rows], gram)
        left[:, rows] = _solved(systems, rhs, before, gain)
    return BlastFactors(left, diag, factors.right), gain


def worth_keeping(gram: Tensor, weight: Tensor) -> bool:
    """Whether a Gram matrix is small enough to keep for the other half of a sweep."""
    return gram.numel() <= _limit(weight)


def row_chunks(weight: Tensor, factors: BlastFactors) -> list[slice]:
    """Split the rows of blocks into chunks that suit memory and caches."""
    batch, b_out, p, rank = factors.left.shape
    row = batch * factors.right.shape[1] * rank * max(p, rank)  # numbers
    return _chunks(b_out, _limit(weight) // row)


def _column_chunks(weight: Tensor, factors: BlastFactors, rows: slice) -> list[slice]:
    """Split the columns of blocks: for a large weight, one row's systems for s are too large."""
    system = factors.left.shape[0] * (rows.stop - rows.start) * factors.rank**2  # numbers
    return _chunks(factors.right.shape[1], _limit(weight) // system)


def _limit(weight: Tensor) -> int:
    return max(_AT_ONCE, weight.numel() // 4)


def _chunks(count: int, at_once: int) -> list[slice]:
    step = max(1, min(count, at_once))
    return [slice(a, min(a + step, count)) for a in range(0, count, step)]


def grams(factor: Tensor) -> Tensor:
    """Gram matrices V_j^T V_j: (..., q, r) -> (..., r, r)."""
    products: Tensor = factor.mT @ factor
    return products


def right_products(weight: Tensor, factors: BlastFactors, rows: slice) -> Tensor:
    """Y_ij = W_ij V_j for some rows i of blocks: (batch, b_in, rows, p, r)."""
    batch, b_in, q, rank = factors.right.shape
    p = factors.left.shape[2]
    chosen = weight[:, rows.start * p : rows.stop * p]  # (batch, rows p, b_in q)
    out = chosen.new_empty(batch, b_in, chosen.shape[1], rank)
    for index in range(batch):
        # a strided view; one product for the whole batch would copy the weight
        blocks = chosen[index].view(-1, b_in, q).transpose(0, 1)  # (b_in, rows p, q)
        torch.bmm(blocks, factors.right[index], out=out[index])
    return out.view(batch, b_in, -1, p, rank)


def left_systems(products: Tensor, diag: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    """Normal equations U_i H_i = R_i: (batch, rows, r, r) and (batch, rows, p, r).

    diag: (batch, rows, b_in, r), gram: (batch, b_in, r, r). Summed over one column of blocks at a
    time, so that the sums stay in the cache and no temporary is as large as `products`.
    """
    batch, b_in, rows, p, rank = products.shape
    systems = diag.new_zeros(batch, rows, rank, rank)
    rhs = diag.new_zeros(batch, rows, p, rank)
    for j in range(b_in):
        scale = diag[:, :, j]  # (batch, rows, r)
        systems.addcmul_(scale.unsqueeze(-1) * scale.unsqueeze(-2), gram[:, j, None])
        rhs.addcmul_(products[:, j], scale.unsqueeze(2))
    return systems, rhs


def diag_systems(
    products: Tensor, left: Tensor, left_gram: Tensor, gram: Tensor
) -> tuple[Tensor, Tensor]:
    """Normal equations of each s_ij: (batch, rows, b_in, r, r) and (batch, rows, b_in, r)."""
    systems = left_gram.unsqueeze(2) * gram.unsqueeze(1)
    columns = [(products[:, j] * left).sum(2) for j in range(products.shape[1])]
    return systems, torch.stack(columns, 2)


def _improved_diag(systems: Tensor, rhs: Tensor, diag: Tensor, steps: int) -> Tensor:
    size = systems.diagonal(dim1=-2, dim2=-1)
    inverse = torch.where(size > 0, size, 1.0).reciprocal()
    return pcg(
        lambda s: (systems @ s.unsqueeze(-1)).squeeze(-1),
        rhs,
        lambda residual: residual * inverse,
        diag,
        steps,
        batch_axes=3,
    )


def _solved(systems: Tensor, rhs: Tensor, left: Tensor, gain_: Tensor | None = None) -> Tensor:
    """Solve U_i H_i = R_i for U.

    The explained part of ||W||^2, the sum of U * (2 R - U H), is added to `gain_`, (batch,).
    """
    diagonal = systems.diagonal(dim1=-2, dim2=-1)
    ridge = diagonal * (_RIDGE * torch.finfo(left.dtype).eps) + (diagonal == 0)
    diagonal.add_(ridge)
    factor, failed = torch.linalg.cholesky_ex(systems)
    if bool(failed.any()):
        diagonal.sub_(ridge)
        solved = solve_spd(systems, rhs.mT, left.mT).mT
        if gain_ is not None:
            gain_ += (solved * (2 * rhs - solved @ systems)).sum((1, 2, 3))
        return solved
    solved = rows_solved(rhs, factor)
    if gain_ is not None:  # U (H + ridge) = R
        gain_ += (solved * rhs).sum((1, 2, 3)) + (solved.square().sum(2) * ridge).sum((1, 2))
    return solved
