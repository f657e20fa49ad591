"""Kernels that follow the dominant subspace of a gradient (rows, columns) from step to step.

They compute in float64: the coupling of a subspace with its complement is a difference of nearly
equal numbers, and the weaker directions of a float32 Gram matrix are rounding errors.
"""

from __future__ import annotations

import torch
from torch import Tensor

# Couplings below this share of the gradient's energy, and their directions, are rounding errors.
_COUPLING = torch.finfo(torch.float64).eps ** 0.5


def dominant(gradient: Tensor, rank: int) -> Tensor:
    """Return the first `rank` left singular vectors: (rows, rank)."""
    scaled = _unit(gradient)
    vectors: Tensor = torch.linalg.eigh(scaled @ scaled.mT).eigenvectors
    return vectors[:, -rank:].flip(-1).to(gradient.dtype)


def turned(subspace: Tensor, gradient: Tensor, gain: float) -> Tensor:
    """Move the subspace S, (rows, rank), along a geodesic so that it captures more of gradient G.

    The derivative of |G - S S^T G|^2 on the Grassmannian is -2 (G - S S^T G) G^T S = -2 U diag(c)
    V^T (SubTrack, Rajabi et al. 2025, arXiv 2502.01586; they keep its first term). The geodesic
    rotates each column of S V towards the matching column of U. In that plane the captured energy
    is a quadratic form in the angle's cosine and sine, so the best angle has a closed form for any
    scale of the gradient and shape of the weight. `gain`, between 0 and 1, is the part of it that
    is used. The captured energy of this gradient never decreases.
    """
    s, g = subspace.double(), _unit(gradient)
    inside = s.mT @ g  # (rank, columns)
    outside = g - s @ inside
    u, coupling, vt = torch.linalg.svd(outside @ inside.mT, full_matrices=False)
    held = (vt @ inside).square().sum(-1)
    missed = (u.mT @ outside).square().sum(-1)
    angle = gain / 2 * torch.atan2(2 * coupling, held - missed)
    angle = torch.where(coupling > _COUPLING, angle, 0)
    moved: Tensor = s + ((s @ vt.mT) * (angle.cos() - 1) + u * angle.sin()) @ vt
    return _orthonormal(moved).to(subspace.dtype)


def _unit(gradient: Tensor) -> Tensor:
    g = gradient.double()
    scaled: Tensor = g / g.norm().clamp_min(torch.finfo(g.dtype).tiny)
    return scaled


def _orthonormal(s: Tensor) -> Tensor:
    """Apply one Newton-Schulz step, so that rounding errors do not accumulate."""
    eye = torch.eye(s.shape[1], dtype=s.dtype, device=s.device)
    corrected: Tensor = s @ (1.5 * eye - 0.5 * (s.mT @ s))
    return corrected


def carried(first: Tensor, second: Tensor, before: Tensor, after: Tensor) -> tuple[Tensor, Tensor]:
    """Convert Adam's moments, (rank, columns), from one subspace's coordinates to another's.

    For independent coordinates g, q g has mean q E[g] and second moment q^2 Var[g] + (q E[g])^2
    (LDAdam, Robert et al. 2024, arXiv 2410.16103; also used by SubTrack++).
    """
    q = after.mT @ before  # (rank, rank)
    mean = q @ first
    variance = (second - first.square()).clamp_min(0)
    return mean, q.square() @ variance + mean.square()


def recovered(outside: Tensor, inside: Tensor, normalised: Tensor) -> Tensor:
    """Return the gradient outside the subspace, each column scaled as Adam scaled it inside.

    outside: (rows, columns)  inside, normalised: (rank, columns). Fira, Chen et al. 2024, arXiv
    2410.01623. There the scale of a column that is mostly outside is unbounded; here its entries
    are at most as large, on average, as those inside. Fira and SubTrack++ bound the growth of the
    whole term from step to step instead. Then it stays near zero after a first gradient of low
    rank, which lies entirely in the first subspace.
    """
    rows, rank = len(outside), len(inside)
    share = (rank / (rows - rank)) ** 0.5
    size = torch.maximum(inside.norm(dim=0), share * outside.norm(dim=0))
    scale = torch.where(size > 0, normalised.norm(dim=0) / size, 0)
    return outside * scale
