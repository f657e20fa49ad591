"""Two-sided feedback weight by weight, and random metrics, for the tests of rounding."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.rounding.cells import Cells


def reference_levels(cells: Cells, upper_c: Tensor, upper_g: Tensor) -> Tensor:
    """Return levels (rows, columns), column by column and row by row, as the formula reads."""
    weight, scale = cells.weight.tolist(), cells.scale.tolist()
    low = torch.as_tensor(cells.low).expand(cells.weight.shape).tolist()
    high = torch.as_tensor(cells.high).expand(cells.weight.shape).tolist()
    along, down = upper_c.tolist(), upper_g.tolist()
    rows, columns = cells.weight.shape
    level = [[0.0] * columns for _ in range(rows)]
    error = [[0.0] * columns for _ in range(rows)]
    for j in range(columns):
        residual = [0.0] * rows
        for i in range(rows):
            v = weight[i][j] + sum(error[i][k] * along[k][j] for k in range(j))
            target = v + sum(down[k][i] * residual[k] for k in range(i))
            level[i][j] = min(max(round(target / scale[i][j]), low[i][j]), high[i][j])
            value = level[i][j] * scale[i][j]
            error[i][j], residual[i] = weight[i][j] - value, v - value
    return torch.tensor(level, dtype=cells.weight.dtype)


def random_metric(size: int, generator: torch.Generator, rank: int | None = None) -> Tensor:
    """Draw a moment whose features are correlated and differ in size; rank None: well-conditioned.

    (size, size), float64.
    """
    rank = rank or 2 * size
    spread = torch.logspace(0, -1, size, dtype=torch.float64)
    mix = torch.randn(size, size, dtype=torch.float64, generator=generator) / size**0.5
    drawn = torch.randn(rank, size, dtype=torch.float64, generator=generator) * spread
    features = drawn @ mix + drawn.roll(1, 1)
    return features.mT @ features / rank


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)
