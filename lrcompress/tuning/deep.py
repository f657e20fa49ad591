"""Deep products of small factors, in the subspace where full-width factors would learn.

The subspace comes from the first gradient.

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
from typing import Self

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError

DEPTH = 3
_OVERSAMPLING, _POWERS = 8, 4
_WORTHWHILE = 4  # randomised SVD if the matrix is at least this many times the subspace


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
    largest = min(gradient.shape[-2:])
    if not 1 <= rank <= largest:
        raise TuneError(f"rank {rank} is not between 1 and {largest}; correct it")
    if not bool(torch.isfinite(gradient).all()):
        raise TuneError("the first gradient is not finite; check the weights and the data")
    columns = rank + _OVERSAMPLING
    wide = gradient.double()
    if columns * _WORTHWHILE > largest:
        u, _, vt = torch.linalg.svd(wide, full_matrices=False)
    else:
        u, vt = _randomised(wide, columns)
    return Bases(-u[..., :rank].to(gradient.dtype), vt[..., :rank, :].mT.to(gradient.dtype))


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


class DeepFactors(nn.Module):
    """dW = W3 W2 W1, or left W3 W2 W1 right^T between bases (*batch, m, k) and (*batch, n, k).

    Between bases every W_l is (*batch, k, k) and the bases are fixed: later gradients are assumed
    to lie in the subspace of the first (Yaras et al. 2024, section 3). Absorbed, W1: (k, n) and
    W3: (m, k) start in the bases and may leave them: only the middle is compressed, and a gradient
    of only nearly low rank (few measurements, a batch) is followed as at full width. For that the
    paper trains the bases at a separate learning rate, which is not needed here.
    """

    left: Tensor | None
    right: Tensor | None

    def __init__(self, factors: list[Tensor], bases: Bases | None = None) -> None:
        """Register W1, W2, W3 (`factors`) as parameters and the bases as buffers."""
        super().__init__()
        self.factors = nn.ParameterList(nn.Parameter(w) for w in factors)
        self.register_buffer("left", None if bases is None else bases.left)
        self.register_buffer("right", None if bases is None else bases.right)

    @classmethod
    def start(
        cls,
        bases: Bases,
        scale: float,
        generator: torch.Generator | None = None,
        *,
        absorbed: bool = False,
    ) -> Self:
        """Return factors W_l(0) = scale O_l; their product is scale^3 times the start's direction.

        Without a generator every O_l is the identity: the coordinates are the gradient's singular
        vectors. Gradient descent does not depend on coordinates, but Adam does: it divides each
        entry by its own history. In those coordinates most entries of a gradient are almost zero,
        and Adam takes steps as large for them as for the others. With a generator each O_l is
        random, as in a full-width start.
        """
        size, batch = bases.right.shape[-1], tuple(bases.right.shape[:-2])
        left, right = bases.left, bases.right
        if generator is None:
            eye = torch.eye(size).to(right).expand(*batch, size, size)
            rotations = [eye] * DEPTH
        else:
            whole, *rotations = (
                orthogonal(size, generator, batch=batch, like=right) for _ in range(DEPTH + 1)
            )
            right = right @ whole.mT
            for rotation in rotations:
                whole = rotation @ whole
            left = left @ whole.mT  # so that left W3 W2 W1 right^T is scale^3 Q in both cases
        factors = [scale * rotation for rotation in rotations]
        if not absorbed:
            return cls(factors, Bases(left, right))
        factors[0], factors[-1] = factors[0] @ right.mT, left @ factors[-1]
        return cls(factors)

    def forward(self) -> Tensor:
        first, *others = self.factors
        product: Tensor = first
        for factor in others:
            product = factor @ product
        if self.left is None or self.right is None:
            return product
        return self.left @ product @ self.right.mT
