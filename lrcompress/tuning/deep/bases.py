"""The subspace in which the factors of a deep product learn, from its first gradient.

W3 W2 W1 (m, n) starts orthogonal and small, W_l(0) = e O_l, as e^3 Q with Q = O3 O2 O1. Let U and V
be the leading singular vectors of the first gradient. Gradient descent then moves W1 only on the
span of V and Q^T U, and carries it through the layers: on the rest every W_l stays e O_l times a
scalar that falls (Yaras, Wang, Balzano, Qu, "Compressible Dynamics in Deep Overparameterized
Low-Rank Learning & Adaptation", ICML 2024, theorem 2.1). So factors of twice the gradient's rank
between two fixed bases, left = Q right, do what factors of full width do.

Q is anyone's to choose. One that takes V to -U makes both spans one: bases of the gradient's own
rank are enough, for a weight of any shape, and the product starts as a step of descent. (One that
takes V to U starts against the descent, at a saddle.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.errors import TuneError


@dataclass(frozen=True, eq=False)
class Bases:
    """left: (*batch, m, k)  right: (*batch, n, k), with left = Q right, Q the start's direction."""

    left: Tensor
    right: Tensor


def aligned_bases(gradient: Tensor, rank: int) -> Bases:
    """Of a start which takes the `rank` leading right singular vectors of the gradient to -left.

    gradient: (*batch, m, n) of the loss with respect to the weight.

    Raises:
        TuneError: the rank is not between 1 and min(m, n), or the gradient is not finite.
    """
    left, right = _leading(gradient, rank)
    return Bases(-left, right)


def bases_from(gradient: Tensor, rank: int, start: Tensor) -> Bases:
    """Of a start in the direction of the orthogonal matrix `start` (*batch, n, n), for which half
    of the rank are singular vectors on the right and half on the left.

    Raises:
        TuneError: as aligned_bases, or the weight is not square, or the rank not even.
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
    """U (*batch, m, rank) and V (*batch, n, rank), in the gradient's type."""
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
_WORTHWHILE = 4  # times that a subspace must be smaller than the matrix


def _randomised(matrix: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """U and V^T of the leading subspace (Halko, Martinsson, Tropp 2011, algorithms 4.4 and 5.1).

    Exact where the rank is `columns` or less. The same matrix gives the same bases.
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
    """Uniformly random orthogonal matrices (*batch, size, size) of the type and device of `like`.

    Drawn on the CPU in float64, so that the same seed gives the same matrix on every device.
    """
    q, r = torch.linalg.qr(
        torch.randn(*batch, size, size, generator=generator, dtype=torch.float64)
    )
    signs = r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)  # QR is unique, and Q uniform
    matrix: Tensor = q * signs
    return matrix.to(dtype=like.dtype, device=like.device)
