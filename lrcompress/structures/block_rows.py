"""Fits that alternate over block rows and block columns of a weight, in any metric.

The metric is brought to unit diagonals first: a diagonal metric then is the plain one, and damping
of a full one treats strong and weak features alike. A weight that blocks do not divide is padded
with features that are zero and of unit weight; they stay zero.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Self

import torch
from torch import Tensor

from lrcompress.errors import FitError
from lrcompress.metrics import Whitening
from lrcompress.metrics.root import Root
from lrcompress.structures.solve import cholesky

_LARGE = 2**15  # scalars of a weight from which sweeps are in float32: twice as fast
_FLAT = 5e-4  # a sweep that gains less of the loss, twice in a row, ends a fit

Parts = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class Side:
    """The moment of one side's features, of unit diagonal, in blocks; gram None: the identity."""

    gram: Tensor | None  # (k, k)
    scale: Tensor  # (k,): the features' own, divided out
    blocks: int
    roots: Tensor | None  # (blocks, size, size): Cholesky factors of the diagonal blocks

    @classmethod
    def of(cls, root: Root, features: int, blocks: int, like: Tensor) -> Self:
        size = -(-features // blocks)
        padding = size * blocks - features
        gram = root.gram()
        if gram is None:
            return cls(None, like.new_ones(features + padding), blocks, None)
        diagonal = (gram if gram.dim() == 2 else gram.diagonal(dim1=-2, dim2=-1))[0]
        scale = torch.where(diagonal > 0, diagonal, torch.ones_like(diagonal)).sqrt()
        padded = torch.cat([scale, scale.new_ones(padding)])
        if gram.dim() == 2:
            return cls(None, padded, blocks, None)
        unit = torch.eye(len(padded), dtype=gram.dtype, device=gram.device)
        unit[:features, :features] = gram[0] / (scale * scale[:, None])
        unit.diagonal().fill_(1.0)
        return cls(unit, padded, blocks, cholesky(diagonal_blocks(unit, blocks)))

    @property
    def size(self) -> int:
        return len(self.scale) // self.blocks

    def rows(self, i: int) -> slice:
        return slice(i * self.size, (i + 1) * self.size)

    def before(self, x: Tensor) -> Tensor:
        """gram x."""
        return x if self.gram is None else self.gram @ x

    def after(self, x: Tensor) -> Tensor:
        """x gram."""
        return x if self.gram is None else x @ self.gram

    def to(self, dtype: torch.dtype) -> Side:
        gram = None if self.gram is None else self.gram.to(dtype)
        roots = None if self.roots is None else self.roots.to(dtype)
        return Side(gram, self.scale.to(dtype), self.blocks, roots)


@dataclass(frozen=True, eq=False)
class Blocked:
    """A weight (m, n) and its metric: loss(E) = 1/2 tr(G E C E^T), G and C of unit diagonal."""

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
        if not bool(torch.isfinite(padded).all()):
            raise FitError("the weight or its moments are not finite; check the model and data")
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

    def sweeping_dtype(self) -> torch.dtype:
        return torch.float32 if self.weight.numel() >= _LARGE else torch.float64


class Residual:
    """E = W - W^ and its image E C, kept current while block rows of W^ change."""

    def __init__(self, error: Tensor, left: Side, right: Side) -> None:
        self.error, self.left, self.right = error, left, right
        self.image = right.after(error)
        if self.image is error:
            self.image = error.clone()

    def force(self, i: int) -> Tensor:
        """G_ii^-1 [G E C]_i: (p, n), the pull on block row i."""
        rows = self.left.rows(i)
        if self.left.gram is None or self.left.roots is None:
            return self.image[rows]
        return torch.cholesky_solve(self.left.gram[rows] @ self.image, self.left.roots[i])

    def mT(self) -> Residual:
        return Residual(self.error.mT.contiguous(), self.right, self.left)

    def loss(self) -> float:
        return 0.5 * float((self.error * self.left.before(self.image)).sum())


def diagonal_blocks(matrix: Tensor, blocks: int) -> Tensor:
    """(b p, b q) -> (b, p, q), a view."""
    p, q = matrix.shape[0] // blocks, matrix.shape[1] // blocks
    cells = matrix.view(blocks, p, blocks, q)
    return cells.diagonal(dim1=0, dim2=2).permute(2, 0, 1)


def block_diagonal(blocks: Tensor) -> Tensor:
    """(b, p, q) -> (b p, b q)."""
    count, p, q = blocks.shape
    whole = blocks.new_zeros(count * p, count * q)
    diagonal_blocks(whole, count).copy_(blocks)
    return whole


def accelerated(
    sweep: Callable[[Parts], tuple[Parts, float]], parts: Parts, loss: float, sweeps: int
) -> Parts:
    """Nesterov's extrapolation of a monotone sweep, begun anew whenever it loses ground.

    Ends early once sweeps gain little. The loss never grows from that of `parts`.
    """
    before, momentum, flat = parts, 1.0, 0
    for _ in range(sweeps):
        following = (1 + sqrt(1 + 4 * momentum**2)) / 2
        ahead = (momentum - 1) / following
        found, reached = sweep(
            tuple(x + ahead * (x - y) for x, y in zip(parts, before, strict=True))
        )
        if not reached <= loss:
            if ahead == 0:  # rounding: nothing is left to gain
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
