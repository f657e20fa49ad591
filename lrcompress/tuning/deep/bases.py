"""The subspace in which the factors of a deep product learn, from its first gradient.

The factors of W3 W2 W1 (m, n) start as small orthogonal matrices W_l(0) = e O_l, so the product is
e^3 Q with Q = O3 O2 O1. Let U and V be the leading singular vectors of the first gradient. Then
gradient descent moves W1 only on the span of V and Q^T U, and the other layers on its images.
Elsewhere every W_l stays e O_l times a decreasing scalar (Yaras, Wang, Balzano, Qu, "Compressible
Dynamics in Deep Overparameterized Low-Rank Learning & Adaptation", ICML 2024, theorem 2.1). So
factors of twice the gradient's rank between two fixed bases, left = Q right, suffice.

Q is free. If Q maps V to -U, both spans coincide: bases of the gradient's rank are enough, for any
shape of weight, and the product starts as a descent step. (If Q maps V to U, it starts against the
descent, at a saddle.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.errors import TuneError


@dataclass(frozen=True, eq=False)
class Bases:
    """Two bases with left = Q right, where Q is the direction of the start.

    left: (*batch, m, k)  right: (*batch, n, k)
    """

    left: Tensor
    right: Tensor


def aligned_bases(gradient: Tensor, rank: int) -> Bases:
    """Return bases for a start that maps the gradient's leading right singular vectors V to -U.

    gradient: (*batch, m, n), of the loss with respect to the weight. rank: number of vectors.

    Raises:
        TuneError: the rank is not between 1 and min(m, n), or the gradient is not finite.
    """
    left, right = _leading(gradient, rank)
    return Bases(-left, right)


def bases_from(gradient: Tensor, rank: int, start: Tensor) -> Bases:
    """Return bases for a start in the direction of an orthogonal matrix `start` (*batch, n, n).

    Half of the rank are right singular vectors of the gradient, half are left ones.

    Raises:
        TuneError: as in aligned_bases, or the weight is not square, or the rank is not even.
    """
    m, n = gradient.shape[-2:]
    if m != n or rank % 2:
        raise TuneError(
            f"bases under a given start need a square weight and an even rank, not {m} x {n} and "
            f"{rank}; use aligned_bases"
        )
    left, right = _leading(gradient, rank // 2)
    both = torch.cat([right, start.mT.to(left) @ left], -1)  # V, Q^T U
    inputs: Tensor = torch.linalg.qr(both).Q
    return Bases((start.to(inputs) @ inputs), inputs)


def _leading(gradient: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """Return U (*batch, m, rank) and V (*batch, n, rank), in the gradient's dtype."""
    largest = min(gradient.shape[-2:])
    if not 1 <= rank <= largest:
        raise TuneError(f"rank {rank} is not between 1 and {largest}; correct it")
    if not bool(torch.isfinite(gradient).all()):
        raise TuneError("the first gradient is not finite; check the weights and the data")
    columns = rank + OVERSAMPLING
    wide = gradient.double()
    if columns * _WORTHWHILE > largest:
        u, _, vt = torch.linalg.svd(wide, full_matrices=False)
    else:
        u, vt = _randomised(wide, columns)
    return u[..., :rank].to(gradient.dtype), vt[..., :rank, :].mT.to(gradient.dtype)


OVERSAMPLING, _POWERS = 8, 4
_WORTHWHILE = 4  # randomised SVD if the matrix is at least this many times the subspace


def _randomised(matrix: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """Return U and V^T of the leading subspace (Halko, Martinsson, Tropp 2011, alg. 4.4 and 5.1).

    Exact if the rank of the matrix is at most `columns`. Deterministic.
    """
    generator = torch.Generator().manual_seed(0)
    sketch = torch.randn(matrix.shape[-1], columns, generator=generator, dtype=matrix.dtype)
    rows = torch.linalg.qr(matrix @ sketch.to(matrix.device)).Q
    for _ in range(_POWERS):
        rows = torch.linalg.qr(matrix @ torch.linalg.qr(matrix.mT @ rows).Q).Q
    u, _, vt = torch.linalg.svd(rows.mT @ matrix, full_matrices=False)
    return rows @ u, vt


def orthogonal(
    size: int, generator: torch.Generator, *, batch: tuple[int, ...] = (), like: Tensor
) -> Tensor:
    """Return uniformly random orthogonal matrices (*batch, size, size).

    They have the dtype and device of `like`. They are drawn on the CPU in float64, so that a seed
    gives the same matrix on every device.
    """
    q, r = torch.linalg.qr(
        torch.randn(*batch, size, size, generator=generator, dtype=torch.float64)
    )
    signs = r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # makes QR unique and Q uniform
    matrix: Tensor = q * signs
    return matrix.to(dtype=like.dtype, device=like.device)
