"""Square roots of second moments: the linear maps that turn a metric into the Frobenius norm.

A root S of a moment M satisfies M = S^T S, so that ||X S^T||_F^2 = tr(X M X^T). `right` maps
X -> X S^T and `right_inverse` undoes it on the range of M (a pseudo-inverse). Any root gives the
same losses and best fits. If shrinkage keeps a moment well away from singular, the root is its
Cholesky factor, twenty times cheaper than eigenvectors. Otherwise it uses the eigenvectors: M is
rank-deficient whenever there are fewer tokens than features (DRONE; SVD-LLM v2, Wang et al. 2025,
eq. 7). Eigenvalues that are negative by rounding are set to zero.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

# Moments are stored in float32: eigenvalues below this share of the largest are rounding errors.
RELATIVE_FLOOR = 1e-9
# Smallest ratio of the least to the largest eigenvalue for which a Cholesky factor is accurate
SAFE_CONDITION = 1e-6


class Root(ABC):
    """Root of a moment over k features, in float64, batched over the groups of a layer."""

    @abstractmethod
    def right(self, x: Tensor) -> Tensor:
        """Return X S^T for X: (groups, rows, k)."""

    @abstractmethod
    def right_inverse(self, y: Tensor) -> Tensor:
        """Return Y (S^T)^+, in the original features."""

    @abstractmethod
    def gram(self) -> Tensor | None:
        """The moment M = S^T S with shrinkage; None for the identity.

        (groups, k, k), or (groups, k) if diagonal.
        """

    def part(self, features: slice) -> Root | None:
        """Return the root of some of the features alone; None where it mixes features."""
        return None

    def left(self, x: Tensor) -> Tensor:
        """Return S X for X: (groups, k, columns)."""
        return self.right(x.mT).mT

    def left_inverse(self, y: Tensor) -> Tensor:
        return self.right_inverse(y.mT).mT


@dataclass(frozen=True)
class IdentityRoot(Root):
    """M = I."""

    def part(self, features: slice) -> Root | None:
        return self

    def right(self, x: Tensor) -> Tensor:
        return x

    def right_inverse(self, y: Tensor) -> Tensor:
        return y

    def gram(self) -> Tensor | None:
        return None


@dataclass(frozen=True, eq=False)
class DiagonalRoot(Root):
    """M = diag(values^2); values: (groups, k)."""

    values: Tensor

    def part(self, features: slice) -> Root | None:
        return DiagonalRoot(self.values[..., features])

    def right(self, x: Tensor) -> Tensor:
        return x * self.values.unsqueeze(-2)

    def right_inverse(self, y: Tensor) -> Tensor:
        return y * _reciprocal(self.values).unsqueeze(-2)

    def gram(self) -> Tensor | None:
        return self.values.square()


@dataclass(frozen=True, eq=False)
class FullRoot(Root):
    """M = vectors diag(values^2) vectors^T; vectors: (groups, k, k), values: (groups, k)."""

    vectors: Tensor
    values: Tensor

    def right(self, x: Tensor) -> Tensor:
        return (x @ self.vectors) * self.values.unsqueeze(-2)

    def right_inverse(self, y: Tensor) -> Tensor:
        return (y * _reciprocal(self.values).unsqueeze(-2)) @ self.vectors.mT

    def gram(self) -> Tensor | None:
        scaled = self.vectors * self.values.unsqueeze(-2)
        return scaled @ scaled.mT


@dataclass(frozen=True, eq=False)
class TriangularRoot(Root):
    """M = lower lower^T; lower: (groups, k, k)."""

    lower: Tensor

    def right(self, x: Tensor) -> Tensor:
        return x @ self.lower

    def right_inverse(self, y: Tensor) -> Tensor:
        solved: Tensor = torch.linalg.solve_triangular(self.lower, y, upper=False, left=False)
        return solved

    def gram(self) -> Tensor | None:
        return self.lower @ self.lower.mT


def root_of(moment: Tensor, *, shrinkage: float = 0.0) -> Root:
    """Return a root of a moment ``(groups, k, k)``, or of a diagonal one ``(groups, k)``.

    `shrinkage` s in [0, 1) replaces M by (1 - s) M + s (tr M / k) I, the Ledoit-Wolf form. It keeps
    the fit from discarding directions that do not occur in a small calibration set.
    """
    moment = moment.to(torch.float64)
    if moment.dim() == 2:
        return DiagonalRoot(_shrink(moment.clamp_min(0), shrinkage).sqrt())
    if shrinkage >= SAFE_CONDITION * moment.shape[-1]:  # no eigenvalue is below s times the mean
        lower, failed = torch.linalg.cholesky_ex(_shrink_full(moment, shrinkage))
        if not bool(failed.any()):
            return TriangularRoot(lower)
    values, vectors = torch.linalg.eigh(moment)
    values = torch.where(values > RELATIVE_FLOOR * values[..., -1:], values, 0.0)
    return FullRoot(vectors, _shrink(values, shrinkage).sqrt())


def _reciprocal(values: Tensor) -> Tensor:
    return torch.where(values > 0, 1.0 / values, 0.0)


def _shrink(eigenvalues: Tensor, shrinkage: float) -> Tensor:
    return (1 - shrinkage) * eigenvalues + shrinkage * eigenvalues.mean(-1, keepdim=True)


def _shrink_full(moment: Tensor, shrinkage: float) -> Tensor:
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)[:, None, None]
    eye = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    return (1 - shrinkage) * moment + shrinkage * mean * eye
