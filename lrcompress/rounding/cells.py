"""The weights to round with each one's own scale and range of levels, in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.number_formats import Codes, Grid


@dataclass(frozen=True, eq=False)
class Cells:
    """Weights, their scales, and the range of their levels; a level is a code minus its zero point.

    All (rows, columns). Without stored zero points the range is the same everywhere: numbers.
    """

    weight: Tensor
    scale: Tensor
    low: Tensor | float
    high: Tensor | float

    def taken(self, rows: Tensor, columns: Tensor) -> Cells:
        """Return the cells with their rows and columns in the given orders."""
        return self.mapped(lambda values: values[rows][:, columns])

    @property
    def mT(self) -> Cells:
        return self.mapped(lambda values: values.mT)

    def nearest(self) -> Tensor:
        """Return the nearest levels: (rows, columns)."""
        return clamped_((self.weight / self.scale).round_(), self.low, self.high)

    def mapped(self, change: Callable[[Tensor], Tensor]) -> Cells:
        """Apply a function to each matrix."""
        return Cells(
            change(self.weight),
            change(self.scale),
            change(self.low) if isinstance(self.low, Tensor) else self.low,
            change(self.high) if isinstance(self.high, Tensor) else self.high,
        )


def clamped_(levels: Tensor, low: Tensor | float, high: Tensor | float) -> Tensor:
    """Clamp levels in place to a range of tensors or of numbers."""
    if isinstance(low, Tensor) and isinstance(high, Tensor):
        return levels.clamp_(low, high)
    assert isinstance(low, float)
    assert isinstance(high, float)
    return levels.clamp_(low, high)


def cells_of(weight: Tensor, grid: Grid, *, narrow: bool, dtype: torch.dtype) -> Cells:
    """Return the cells of a weight (rows, columns); narrow: code 0 stays unused."""
    scale, zero = grid.per_column(weight.shape[1])
    low, high = (1 if narrow else 0), (1 << grid.bits) - 1
    weight, scale = weight.to(dtype), scale.to(dtype)
    if grid.zeros is None:
        return Cells(weight, scale, float(low - grid.middle), float(high - grid.middle))
    zero = zero.to(dtype)
    return Cells(weight, scale, low - zero, high - zero)


def codes_of(levels: Tensor, grid: Grid) -> Codes:
    """Return the codes of levels (rows, columns)."""
    if grid.zeros is None:
        return Codes(grid, (levels + grid.middle).to(torch.uint8))
    return Codes(grid, (levels + grid.per_column(levels.shape[1])[1]).to(torch.uint8))
