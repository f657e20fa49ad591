"""Fits that alternate over block rows and block columns of a weight, in any metric.

The metric is first scaled to unit diagonals. A diagonal metric becomes the plain one, and damping
of a full metric treats strong and weak features alike. A weight that the blocks do not divide is
padded with zero features of unit weight, which stay zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Self
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.metrics.root import Root
from lrcompress.structures.solve import check_finite, cholesky, rows_solved

_LARGE = 2**15  # scalars of a weight from which sweeps use float32, which is twice as fast
_SWEEPS, _QUICK_SWEEPS = 40, 8
_QUICK_WORK = 2**31  # multiply-adds for a point of a loss curve; limits its sweeps
_FLAT = 5e-4  # two sweeps in a row that gain a smaller share of the loss end the fit

Parts = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Side:
    """The unit-diagonal moment of one side's features, in blocks; gram None: the identity."""

    gram: Tensor | None  # (k, k)
    scale: Tensor  # (k,): the features' scales, divided out
    blocks: int
    roots: Tensor | None  # (blocks, size, size): Cholesky factors of the diagonal blocks

    @classmethod
    def of(cls, root: Root, features: int, blocks: int, like: Tensor) -> Self:
        padding = -features % blocks
        scale, unit = _unit_moment(root)
        padded = like.new_ones(features + padding)
        if scale is not None:
            padded[:features] = scale
        if unit is None:
            return cls(None, padded, blocks, None)
        if padding:
            ones = torch.eye(padding, dtype=unit.dtype, device=unit.device)
            unit = torch.block_diag(unit, ones)  # type: ignore[no-untyped-call]
        return cls(unit, padded, blocks, cholesky(diagonal_blocks(unit, blocks)))

    @property
    def size(self) -> int:
        return len(self.scale) // self.blocks

    def rows(self, i: int) -> slice:
        return slice(i * self.size, (i + 1) * self.size)

    def before(self, x: Tensor) -> Tensor:
        """Return gram x."""
        return x if self.gram is None else self.gram @ x

    def after(self, x: Tensor) -> Tensor:
        """Return x gram."""
        return x if self.gram is None else x @ self.gram

    def to(self, dtype: torch.dtype) -> Side:
        gram = None if self.gram is None else self.gram.to(dtype)
        roots = None if self.roots is None else self.roots.to(dtype)
        return Side(gram, self.scale.to(dtype), self.blocks, roots)


@dataclass(frozen=True, eq=False)
class Blocked:
    """A weight (m, n) and its metric: loss(E) = 1/2 tr(G E C E^T); G and C have unit diagonal."""

    weight: Tensor
    left: Side
    right: Side

    @classmethod
    def of(cls, weight: Tensor, whitening: Whitening, blocks: int) -> Self:
        """weight: (1, m, n).

        Raises:
            FitError: the weight or its whitening is not finite.
        """
        weight = weight[0].to(torch.float64)
        m, n = weight.shape
        left = Side.of(whitening.output, m, blocks, weight)
        right = Side.of(whitening.input, n, blocks, weight)
        padded = weight.new_zeros(len(left.scale), len(right.scale))
        padded[:m, :n] = weight
        padded *= left.scale[:, None] * right.scale
        check_finite(padded)
        return cls(padded, left, right)

    @property
    def plain(self) -> bool:
        return self.left.gram is None and self.right.gram is None

    @property
    def mT(self) -> Blocked:
        return Blocked(self.weight.mT.contiguous(), self.right, self.left)

    def to(self, dtype: torch.dtype) -> Blocked:
        return Blocked(self.weight.to(dtype), self.left.to(dtype), self.right.to(dtype))

    def loss(self, error: Tensor) -> float:
        return 0.5 * float((self.left.before(error) * self.right.after(error)).sum())

    def sweeps(self, *, quick: bool) -> int:
        m, n = self.weight.shape
        return max(4, min(_QUICK_SWEEPS, _QUICK_WORK // (m * n * (m + n)))) if quick else _SWEEPS


_UNIT_MOMENTS: WeakKeyDictionary[Root, tuple[Tensor | None, Tensor | None]] = WeakKeyDictionary()


def _unit_moment(root: Root) -> tuple[Tensor | None, Tensor | None]:
    """Scale of the features (None: ones) and their unit-diagonal moment (None: the identity).

    Cached while the root exists: the fits of a loss curve share one, and with many features it
    costs more than half a fit of the curve.
    """
    if root in _UNIT_MOMENTS:
        return _UNIT_MOMENTS[root]
    gram, unit = root.gram(), None
    scale = None
    if gram is not None:
        diagonal = (gram if gram.dim() == 2 else gram.diagonal(dim1=-2, dim2=-1))[0]
        scale = torch.where(diagonal > 0, diagonal, 1.0).sqrt()
        if gram.dim() == 3:
            unit = gram[0] / (scale * scale[:, None])
            unit.diagonal().fill_(1.0)
    _UNIT_MOMENTS[root] = scale, unit
    return scale, unit


class Residual:
    """E = W - W^ and its image E C, kept up to date while block rows of W^ change."""

    def __init__(self, error: Tensor, left: Side, right: Side) -> None:
        self.error, self.left, self.right = error, left, right
        self.image = right.after(error)
        if self.image is error:
            self.image = error.clone()

    def force(self, i: int) -> Tensor:
        """Return G_ii^-1 [G E C]_i: (p, n), the descent direction for block row i."""
        rows = self.left.rows(i)
        if self.left.gram is None or self.left.roots is None:
            return self.image[rows]
        return torch.cholesky_solve(self.left.gram[rows] @ self.image, self.left.roots[i])

    def mT(self) -> Residual:
        return Residual(self.error.mT.contiguous(), self.right, self.left)

    def loss(self) -> float:
        return 0.5 * float((self.error * self.left.before(self.image)).sum())


def block_sizes(spec: LayerSpec, blocks: int) -> tuple[int, int]:
    """Return the numbers of rows and columns of a block, with padding, in a grid of blocks^2."""
    return -(-spec.out_features // blocks), -(-spec.in_features // blocks)


def diagonal_blocks(matrix: Tensor, blocks: int) -> Tensor:
    """Return a view of the diagonal blocks: (b p, b q) -> (b, p, q)."""
    p, q = matrix.shape[0] // blocks, matrix.shape[1] // blocks
    cells = matrix.view(blocks, p, blocks, q)
    return cells.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def block_diagonal(blocks: Tensor) -> Tensor:
    """Assemble a block-diagonal matrix: (b, p, q) -> (b p, b q)."""
    count, p, q = blocks.shape
    whole = blocks.new_zeros(count * p, count * q)
    diagonal_blocks(whole, count).copy_(blocks)
    return whole


def by_diagonal_blocks(left: Side, right: Side, x: Tensor) -> Tensor:
    """Return G_ii^-1 X_ij C_jj^-1 for all blocks (b, b, p, q), or the diagonal ones (b, p, q)."""
    if left.roots is not None:
        x = torch.cholesky_solve(x, left.roots if x.dim() == 3 else left.roots[:, None])
    if right.roots is not None:
        x = rows_solved(x, right.roots)
    return x


@dataclass(frozen=True)
class Form:
    """How `alternate` handles the factors (`Parts`) of a structure."""

    error: Callable[[Tensor, Parts], Tensor]  # weight, parts -> W - W^
    turned: Callable[[Parts], Parts]  # the parts of W^T
    fit_rows_: Callable[[Residual, Parts], None]  # improve block rows and the residual in place

    def sweep(self, problem: Blocked, parts: Parts) -> tuple[Parts, float]:
        """Improve block rows, then block columns; return the parts and the loss."""
        parts = tuple(x.clone() for x in parts)
        residual = Residual(self.error(problem.weight, parts), problem.left, problem.right)
        self.fit_rows_(residual, parts)
        residual, parts = residual.mT(), self.turned(parts)
        self.fit_rows_(residual, parts)
        return self.turned(parts), residual.loss()


def alternate(problem: Blocked, parts: Parts, form: Form, *, quick: bool) -> Parts:
    """Run accelerated sweeps in the dtype that suits the size; the loss does not grow."""
    error = form.error
    dtype = torch.float32 if problem.weight.numel() >= _LARGE else torch.float64
    coarse = problem.to(dtype)
    initial = tuple(x.to(dtype) for x in parts)
    loss = coarse.loss(error(coarse.weight, initial))
    swept = accelerated(lambda x: form.sweep(coarse, x), initial, loss, problem.sweeps(quick=quick))
    found = tuple(x.to(problem.weight.dtype) for x in swept)
    if quick or dtype == problem.weight.dtype:
        return found
    # Rounding to float32 may cost more than the sweeps gained
    return min(parts, found, key=lambda x: problem.loss(error(problem.weight, x)))


def accelerated(
    sweep: Callable[[Parts], tuple[Parts, float]], parts: Parts, loss: float, sweeps: int
) -> Parts:
    """Nesterov's extrapolation of a monotone sweep, restarted whenever the loss grows.

    Ends early once sweeps gain little. The loss never exceeds that of `parts`.
    """
    before, momentum, flat = parts, 1.0, 0
    for _ in range(sweeps):
        following = (1 + sqrt(1 + 4 * momentum**2)) / 2
        ahead = (momentum - 1) / following
        found, reached = sweep(
            tuple(x + ahead * (x - y) for x, y in zip(parts, before, strict=True))
        )
        if not reached <= loss:
            if ahead == 0:  # a plain sweep failed: only rounding is left
                break
            following = 1.0
            found, reached = sweep(parts)
            if not reached <= loss:
                break
            before = found
        else:
            before = parts
        flat = flat + 1 if reached > (1 - _FLAT) * loss else 0
        parts, loss, momentum = found, reached, following
        if flat == 2:
            break
    return parts
