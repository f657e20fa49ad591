"""Error feedback along rows and columns at once, by antidiagonals (slow reference form)."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.rounding.cells import Cells, clamped_


def wavefront(cells: Cells, along_rows: Tensor, along_columns: Tensor) -> Tensor:
    """Return levels (rows, columns); U_C: (columns, columns), U_G: (rows, rows)."""
    weight, scale = cells.weight, cells.scale
    m, n = weight.shape
    error, partial = torch.zeros_like(weight), torch.zeros_like(weight)
    levels = torch.zeros_like(weight)
    for step in range(m + n - 1):
        i = torch.arange(max(0, step - n + 1), min(m, step + 1))
        j = step - i
        value = weight[i, j] + (error[i] * along_rows.mT[j]).sum(1)
        target = value + (partial[:, j] * along_columns[:, i]).sum(0)
        low = cells.low[i, j] if isinstance(cells.low, Tensor) else cells.low
        high = cells.high[i, j] if isinstance(cells.high, Tensor) else cells.high
        level = clamped_((target / scale[i, j]).round_(), low, high)
        levels[i, j] = level
        error[i, j] = weight[i, j] - level * scale[i, j]
        partial[i, j] = value - level * scale[i, j]
    return levels
