"""The start of a plain fit: the truncated SVD, which is a BLAST weight with s = 1."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.factors import BlastFactors, residual

_ITERATIONS = 3  # of the subspace; the sweeps that follow correct the remaining error


def spectral_start(
    weight: Tensor, b_out: int, b_in: int, rank: int, generator: torch.Generator
) -> BlastFactors:
    """Truncated SVD of (batch, b_out p, b_in q), by subspace iteration (Halko et al. 2011, 4.4).

    The basis is that of the singular vectors: sweeps from another basis of the same subspace gain
    half as much. For ranks beyond the weight's own, V and s are random and U is zero.
    """
    batch, m, n = weight.shape
    if m < n:  # the smaller side is cheaper to iterate on
        return spectral_start(weight.mT, b_in, b_out, rank, generator).transposed
    known = min(rank, n)
    basis = drawn((n, known), weight, generator).expand(batch, -1, -1)
    for _ in range(_ITERATIONS):
        basis = torch.linalg.qr(weight.mT @ (weight @ basis)).Q  # (batch, n, known)
    image = weight @ basis  # (batch, m, known)
    turn = torch.linalg.eigh(image.mT @ image).eigenvectors
    left, right = image @ turn, basis @ turn
    diag = weight.new_ones(batch, b_out, b_in, rank)
    if rank > known:
        more = rank - known
        left = torch.cat([left, left.new_zeros(batch, m, more)], -1)
        columns = drawn((n, more), weight, generator).div(n**0.5)
        right = torch.cat([right, columns.expand(batch, -1, -1)], -1)
        diag[..., known:] = drawn((b_out, b_in, more), weight, generator)
    return BlastFactors(left.view(batch, b_out, -1, rank), diag, right.view(batch, b_in, -1, rank))


def spectral_loss(weight: Tensor, start: BlastFactors) -> Tensor:
    """||W - W_hat||^2 of a `spectral_start`, whose components are orthogonal: (batch,)."""
    captured = start.left.square().sum((1, 2)) * start.right.square().sum((1, 2))  # (batch, r)
    return (weight.square().sum((1, 2)) - captured.sum(1)).clamp_min(0)


def extended(
    weight: Tensor, factors: BlastFactors, rank: int, generator: torch.Generator
) -> BlastFactors:
    """Extend factors to `rank`; the added columns are the `spectral_start` of the residual."""
    more = rank - factors.rank
    if more == 0:
        return factors
    b_out, b_in = factors.diag.shape[1:3]
    added = spectral_start(residual(weight, factors), b_out, b_in, more, generator)
    return BlastFactors(*(torch.cat(pair, -1) for pair in zip(factors, added, strict=True)))


def drawn(shape: tuple[int, ...], like: Tensor, generator: torch.Generator) -> Tensor:
    """Draw normal numbers on the generator's device, so that they do not depend on the weight's."""
    return torch.randn(shape, generator=generator, device=generator.device).to(like)
