"""Batched kernels for updates of two factors that do not depend on the factors' basis.

Yen et al. 2024 (LoRA Done RITE, arXiv 2410.20625). For Z = A B^T, A: (m, r), B: (n, r), and B = U R
with orthonormal U, the gradient of A is (dZ U) R. R depends on the choice of A and B for a given Z;
dZ U depends on it only through the orthonormal basis U of the range of B.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# Relative to the largest eigenvalue of a second moment. Smaller eigenvalues are rounding errors in
# float32, which the inverse root would amplify; in float64 half of their digits are.
DAMPING = 1e-6


@dataclass(frozen=True, eq=False)
class Basis:
    """The decomposition B = U R with k = min(n, r); columns of U outside B's range are zero."""

    columns: Tensor  # U: (batch, n, k)
    root: Tensor  # R: (batch, k, r)
    inverse: Tensor  # pseudo-inverse of R: (batch, r, k)


def basis(factor: Tensor) -> Basis:
    """Return the basis of a factor (batch, n, r).

    Only orthogonal transformations are used, so U stays accurate if R is ill-conditioned.
    """
    n, r = factor.shape[-2:]
    q, triangle = torch.linalg.qr(factor)
    smallest = max(n, r) * torch.finfo(factor.dtype).eps  # singular value, relative to the largest
    if n >= r:
        eye = torch.eye(r, dtype=factor.dtype, device=factor.device).expand_as(triangle)
        inverse = torch.linalg.solve_triangular(triangle, eye, upper=True)
        # an upper bound on the condition number, so that no SVD is needed if it is small
        ratio = torch.linalg.matrix_norm(inverse) * torch.linalg.matrix_norm(triangle)
        if bool((ratio * smallest < 1).all()):
            return Basis(q, triangle, inverse)
    p, s, vt = torch.linalg.svd(triangle, full_matrices=False)
    kept = s > smallest * s[..., :1]
    reciprocal = torch.where(kept, 1 / s, 0)
    s = torch.where(kept, s, 0)
    return Basis(
        (q @ p) * kept.unsqueeze(-2), s.unsqueeze(-1) * vt, vt.mT * reciprocal.unsqueeze(-2)
    )


@dataclass(frozen=True, eq=False)
class Moments:
    """First and second moment of a factor A in the basis of the other: means over past steps.

    first: (batch, m, k), of preconditioned gradients; second: (batch, k, k), of g^T g / m;
    escaped: (batch,), the most that the second moment lost in any direction to changes of basis.
    """

    first: Tensor
    second: Tensor
    escaped: Tensor

    def moved(self, before: Tensor, after: Tensor) -> Moments:
        """Return the moments in another basis (P and rho of algorithm 1); bases: (batch, n, k)."""
        p = after.mT @ before  # (batch, k, k)
        second = _symmetric(p @ self.second @ p.mT)
        lost = torch.linalg.eigvalsh(self.second) - torch.linalg.eigvalsh(second)
        return Moments(self.first @ p.mT, second, self.escaped + lost.amax(-1).clamp_min(0))

    def updated(self, gradient: Tensor, decays: tuple[float, float]) -> Moments:
        """Return the moments after a step. gradient: (batch, m, k), unmagnified (without R)."""
        first_decay, second_decay = decays
        square = gradient.mT @ gradient / gradient.shape[-2]
        second = _symmetric(second_decay * self.second + (1 - second_decay) * square)
        escaped = second_decay * self.escaped
        step = _preconditioned(gradient, second, escaped)
        first = first_decay * self.first + (1 - first_decay) * step
        return Moments(first, second, escaped)


def _preconditioned(gradient: Tensor, second: Tensor, escaped: Tensor) -> Tensor:
    """Return g (V + rho I)^(-1/2), whose entries are of order one."""
    values, vectors = torch.linalg.eigh(second)
    values = values.clamp_min(0)
    power = values + escaped.unsqueeze(-1) + DAMPING * values[..., -1:]
    scale = torch.where(power > 0, power.rsqrt(), 0)
    inverse_root: Tensor = (vectors * scale.unsqueeze(-2)) @ vectors.mT
    return gradient @ inverse_root


def _symmetric(matrix: Tensor) -> Tensor:
    return (matrix + matrix.mT) / 2


def damped_inverse(own: Basis, other: Basis, step: float) -> Tensor:
    """Return a damped inverse of R of `own`, (batch, k, r); `step` is the length of a step.

    Simultaneous steps of A and B change A B^T also by their product, step^2 M_A (R_A R_B^T)^-1
    M_B^T. It exceeds either step's own change where Z has singular values below `step`. Only there
    is this inverse smaller than the true one. It is (Z Z^T + step^2)^-1 Z R_B in the two bases and,
    like the true inverse, gives the same update in every basis.
    """
    core = own.root @ other.root.mT  # Z in both bases: (batch, k, k')
    p, s, qt = torch.linalg.svd(core, full_matrices=False)
    length = max(step, torch.finfo(s.dtype).tiny ** 0.5)
    scale = (s / (s.square() + length**2)).unsqueeze(-1)
    inverse: Tensor = p @ (scale * (qt @ other.root))
    return inverse
