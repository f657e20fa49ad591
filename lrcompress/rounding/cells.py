"""The weights to round with each one's own scale and range of levels, in any order."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.number_formats import Grid

ROWS_AT_ONCE = 64


@dataclass(frozen=True, eq=False)
class Cells:
    """Weights, their scales, and the range of their levels; a level is a code minus its zero point.

    All (rows, columns). Without stored zero points the range is the same everywhere: numbers.
    """

    weight: Tensor
    scale: Tensor
    low: Tensor | float
    high: Tensor | float

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


def cells_of(
    weight: Tensor,
    grid: Grid,
    rows: Tensor | None,
    columns: Tensor | None,
    *,
    narrow: bool,
    dtype: torch.dtype,
) -> Cells:
    """Return the cells of a weight with its rows and columns in the given orders (None: its own).

    narrow: code 0 stays unused.
    """
    block = torch.arange(weight.shape[1], device=weight.device) // grid.block
    if columns is not None:
        block = block[columns]

    def per_cell(values: Tensor) -> Tensor:
        return _taken(values.to(dtype), rows, block)

    ordered, scale = _taken(weight.to(dtype), rows, columns), per_cell(grid.scales)
    low, high = (1 if narrow else 0), (1 << grid.bits) - 1
    if grid.zeros is None:
        return Cells(ordered, scale, float(low - grid.middle), float(high - grid.middle))
    zero = per_cell(grid.zeros)
    return Cells(ordered, scale, low - zero, high - zero)


def codes_of(levels: Tensor, cells: Cells, *, narrow: bool) -> Tensor:
    """Return the codes of levels (rows, columns), uint8. The levels are overwritten."""
    codes = levels.sub_(cells.low)
    return (codes.add_(1) if narrow else codes).to(torch.uint8)


def _taken(values: Tensor, rows: Tensor | None, columns: Tensor | None) -> Tensor:
    if columns is None:
        return values if rows is None else values[rows]
    if rows is None:
        return values.index_select(1, columns)
    out = values.new_empty(rows.numel(), columns.numel())
    for start in range(0, rows.numel(), ROWS_AT_ONCE):  # fresh memory is slow, so little of it
        part = slice(start, start + ROWS_AT_ONCE)
        torch.index_select(values[rows[part]], 1, columns, out=out[part])
    return out
