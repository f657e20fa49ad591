"""The published fit of BLAST weights, for comparison: preconditioned gradient descent.

Lee, Kwon, Qu, Kim, "BLAST: Block-Level Adaptive Structured Matrices for Efficient Deep Neural
Network Inference" (NeurIPS 2024), Algorithm 2. From a small random start, U, V and s in turn step
against their gradient, preconditioned by the inverse of the Gram matrix of the other two:
    U_i  -= eta (U_i H_i - R_i) (H_i + delta I)^-1          with H, R of the normal equations
where eta falls linearly from 1 to 0 and delta = delta_0 sqrt(loss).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.alternating import (
    diag_systems,
    grams,
    left_systems,
    right_products,
    row_chunks,
)
from lrcompress.structures.blast_fit.factors import BlastFactors
from lrcompress.structures.blast_fit.unit_norm import norms, padded
from lrcompress.structures.solve import cholesky

SWEEPS = 300
# Relative to the unit norm. Best on trained weights: 1e-1 is 5 % worse, smaller is no better.
_DELTA = 3e-4
_SPREAD = 3e-3  # standard deviation of U and V at the start


@torch.no_grad()
def fit_precgd(
    weight: Tensor,
    *,
    rank: int,
    blocks_out: int,
    blocks_in: int,
    sweeps: int = SWEEPS,
    generator: torch.Generator | None = None,
) -> BlastFactors:
    """Fit BLAST factors to weights (batch, m, n) of one shape, in their dtype, on their device.

    Works in float32, as `fit_plain`. `generator`: on the CPU; without one the start is fixed.

    Raises:
        FitError: the weight is not finite.
    """
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    norm = norms(weight)
    unit = padded(weight, norm, blocks_out, blocks_in, torch.float32)
    start = random_start(unit, blocks_out, blocks_in, rank, generator)
    return _descend(unit, start, sweeps).balanced().to(norm).scaled(norm).to(weight)


def random_start(
    weight: Tensor, b_out: int, b_in: int, rank: int, generator: torch.Generator
) -> BlastFactors:
    """The paper's random start: U and V normal and small, s uniform in [0, 1)."""
    batch, m, n = weight.shape
    left = _SPREAD * torch.randn(batch, b_out, m // b_out, rank, generator=generator)
    right = _SPREAD * torch.randn(batch, b_in, n // b_in, rank, generator=generator)
    diag = torch.rand(batch, b_out, b_in, rank, generator=generator)
    return BlastFactors(left, diag, right).to(weight)


def _descend(weight: Tensor, factors: BlastFactors, sweeps: int) -> BlastFactors:
    total = weight.square().sum((1, 2))  # (batch,)
    loss = total
    for sweep in range(sweeps):
        step = 1 - sweep / sweeps
        delta = _DELTA * loss.sqrt()
        left, _, _ = _half(weight, factors, step, delta, move_diag=False)
        factors = factors._replace(left=left).transposed
        right, diag, gain = _half(weight.mT, factors, step, delta, move_diag=True)
        factors = BlastFactors(right, diag, left).transposed
        loss = (total - gain).clamp_min(0)
    return factors


def _half(
    weight: Tensor, factors: BlastFactors, step: float, delta: Tensor, *, move_diag: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return U after its step, s (after its step if `move_diag`), and ||W||^2 - loss before it."""
    gram = grams(factors.right)
    lefts, diags, gain = [], [], torch.zeros_like(delta)
    for rows in row_chunks(weight, factors):
        products = right_products(weight, factors, rows)
        left, diag = factors.left[:, rows], factors.diag[:, rows]
        systems, rhs = left_systems(products, diag, gram)
        slope = (left @ systems - rhs).mT  # (batch, rows, r, p)
        left = left - step * torch.cholesky_solve(slope, _damped(systems, delta)).mT
        if move_diag:
            systems, aim = diag_systems(products, left, grams(left), gram)
            image = (systems @ diag.unsqueeze(-1)).squeeze(-1)  # (batch, rows, b_in, r)
            gain = gain + (diag * (2 * aim - image)).sum((1, 2, 3))
            slope = (image - aim).unsqueeze(-1)
            moved = torch.cholesky_solve(slope, _damped(systems, delta)).squeeze(-1)
            diag = diag - step * moved
        lefts.append(left)
        diags.append(diag)
    return torch.cat(lefts, 1), torch.cat(diags, 1), gain


def _damped(systems: Tensor, delta: Tensor) -> Tensor:
    """Return a Cholesky factor of H + delta I; systems: (batch, ..., r, r), delta: (batch,)."""
    eye = torch.eye(systems.shape[-1], dtype=systems.dtype, device=systems.device)
    damped = systems + delta.reshape(-1, *[1] * (systems.dim() - 1)) * eye
    factor, failed = torch.linalg.cholesky_ex(damped)
    return cholesky(damped) if bool(failed.any()) else factor
