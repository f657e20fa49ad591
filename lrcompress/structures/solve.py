"""Solvers for the positive semi-definite systems of alternating fits; no step increases the loss.

A Gram matrix of factors may be singular (dead inputs, repeated columns); its solution is then not
unique. `solve_spd` damps it and solves for the step from the current point: with
x' = x + (M + e I)^-1 (b - M x) the quadratic 1/2 x.Mx - b.x cannot grow, for any e >= 0.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lrcompress.errors import FitError

_GROWTH = 30.0
_ATTEMPTS = 6
_ROUNDING = 1.0  # first damping, in units of the matrix size times the dtype's epsilon


def check_finite(values: Tensor, what: str = "the weight or its moments are") -> None:
    """Raise FitError unless all values are finite."""
    if not bool(torch.isfinite(values).all()):
        raise FitError(f"{what} not finite; check the model and data")


def solve_spd(gram: Tensor, rhs: Tensor, start: Tensor | None = None) -> Tensor:
    """Solve gram x = rhs for x, as a step from `start` (default: zero).

    gram: (..., k, k)  rhs, start, x: (..., k, columns). Leading axes are separate systems. Each is
    damped as little as its Cholesky factorisation needs, relative to its mean diagonal.

    Raises:
        FitError: a system is not finite.
    """
    missing = rhs if start is None else rhs - gram @ start
    step = torch.cholesky_solve(missing, cholesky(gram))
    return step if start is None else start + step


def cholesky(gram: Tensor) -> Tensor:
    """Lower Cholesky factor of gram + e I, for the smallest tried e that works.

    For systems that are solved many times (torch.cholesky_solve). A zero matrix is damped like I.

    Raises:
        FitError: the matrix is not finite.
    """
    check_finite(gram, "a system of equations of its fit is")
    size = gram.shape[-1]
    diagonal = gram.diagonal(dim1=-2, dim2=-1).mean(-1)
    scale = torch.where(diagonal > 0, diagonal, 1.0)
    damping = scale * (size * torch.finfo(gram.dtype).eps * _ROUNDING)
    eye = torch.eye(size, dtype=gram.dtype, device=gram.device)
    for _ in range(_ATTEMPTS):
        factor: Tensor
        factor, failed = torch.linalg.cholesky_ex(gram + damping[..., None, None] * eye)
        if not bool(failed.any()):
            return factor
        damping = torch.where(failed > 0, damping * _GROWTH, damping)
    return _cholesky_of_eigenvalues(gram, scale)


def rows_solved(rows: Tensor, factor: Tensor) -> Tensor:
    """Solve X L L^T = rows for X. rows, X: (..., count, k), factor: L (..., k, k).

    On the CPU it takes half the time of torch.cholesky_solve on the transposes.
    """
    half = torch.linalg.solve_triangular(factor.mT, rows, upper=True, left=False)
    solved: Tensor = torch.linalg.solve_triangular(factor, half, upper=False, left=False)
    return solved


def _cholesky_of_eigenvalues(gram: Tensor, scale: Tensor) -> Tensor:
    """Cholesky factor of an indefinite matrix, with its eigenvalues raised to a small floor."""
    values, vectors = torch.linalg.eigh(0.5 * (gram + gram.mT))
    floor = scale.unsqueeze(-1) * torch.finfo(gram.dtype).eps ** 0.5
    root = vectors * values.clamp_min(floor).sqrt().unsqueeze(-2)
    r: Tensor = torch.linalg.qr(root.mT).R  # root root^T = R^T R
    sign = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0)
    return (r * sign.unsqueeze(-1)).mT


def pcg(
    apply: Callable[[Tensor], Tensor],
    rhs: Tensor,
    precondition: Callable[[Tensor], Tensor],
    start: Tensor,
    steps: int,
    *,
    batch_axes: int = 0,
    tolerance: float = 0.0,
) -> Tensor:
    """Solve apply(x) = rhs by at most `steps` of preconditioned conjugate gradients.

    All tensors have one shape; the first `batch_axes` axes index separate systems. `apply` is
    linear, symmetric and positive semi-definite, and so is `precondition`, roughly its inverse. A
    system stops when its residual, in the preconditioner's norm, is `tolerance` times that of
    `rhs`, or when its curvature is within rounding. The quadratic 1/2 x.apply(x) - rhs.x never
    exceeds its value at `start`.
    """
    axes = tuple(range(batch_axes, rhs.dim()))

    def dot(a: Tensor, b: Tensor) -> Tensor:
        return (a * b).sum(axes, keepdim=True)

    x = start
    residual = rhs - apply(x)
    direction = precondition(residual)
    norm = dot(residual, direction)
    stop = dot(rhs, precondition(rhs)) * tolerance**2
    tiny = torch.finfo(rhs.dtype).tiny
    for _ in range(steps):
        image = apply(direction)
        curvature = dot(direction, image)
        going = (norm > stop) & (curvature > tiny)
        if not bool(going.any()):
            break
        length = torch.where(going, norm / curvature.clamp_min(tiny), 0.0)
        x = x + length * direction
        residual = residual - length * image
        z = precondition(residual)
        after = dot(residual, z)
        ratio = torch.where(going, after / norm.clamp_min(tiny), 0.0)
        direction, norm = z + ratio * direction, torch.where(going, after, norm)
    return x
