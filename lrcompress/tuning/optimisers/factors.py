"""Factors and pairs of factors as matrices, independent of how a module stores them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from torch import Tensor, nn


@dataclass(frozen=True, eq=False)
class Factor:
    """A parameter, and how to convert it to matrices (batch, rows, rank)."""

    parameter: nn.Parameter
    shape: tuple[int, ...]  # the parameter is first reshaped to it; the next fields are its axes
    rank_axis: int
    batch_axes: tuple[int, ...] = ()

    @property
    def _order(self) -> tuple[int, ...]:
        named = (*self.batch_axes, self.rank_axis)
        rows = tuple(axis for axis in range(len(self.shape)) if axis not in named)
        return (*self.batch_axes, *rows, self.rank_axis)

    def matrices(self, values: Tensor) -> Tensor:
        """Convert a tensor of the parameter's shape (e.g. its gradient) to (batch, rows, rank)."""
        batch = prod(self.shape[axis] for axis in self.batch_axes)
        ordered = values.reshape(self.shape).permute(self._order)
        return ordered.reshape(batch, -1, self.shape[self.rank_axis])

    def values(self, matrices: Tensor) -> Tensor:
        """Convert (batch, rows, rank) to the parameter's shape."""
        order = self._order
        ordered = matrices.reshape([self.shape[axis] for axis in order])
        back = sorted(range(len(order)), key=order.__getitem__)
        return ordered.permute(back).reshape(self.parameter.shape)


@dataclass(frozen=True, eq=False)
class FactorPair:
    """The pair W = L R^T;  left: (batch, m, r)  right: (batch, n, r). L is applied last."""

    left: Factor
    right: Factor
    free_basis: bool = True  # (L M, R M^-T) is the same weight for every invertible M: (r, r)

    @property
    def parameters(self) -> tuple[nn.Parameter, nn.Parameter]:
        return self.left.parameter, self.right.parameter
