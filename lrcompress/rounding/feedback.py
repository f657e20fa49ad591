"""Rounding to a given grid with error feedback along those sides whose moment is full."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.number_formats import Codes, Grid
from lrcompress.rounding.cells import Cells, cells_of, codes_of
from lrcompress.rounding.column_feedback import column_feedback
from lrcompress.rounding.prepared_metric import PreparedMetric, Side
from lrcompress.rounding.wavefront import wavefront

CELLS_AT_ONCE = 2**24  # weights in one part, where rows do not depend on each other


def with_feedback(weight: Tensor, grid: Grid, metric: PreparedMetric, *, narrow: bool) -> Codes:
    """Return codes of `weight` (rows, columns) on `grid`; narrow: code 0 stays unused."""
    input, output = metric.input, metric.output
    if output is not None and output.upper is not None:
        return codes_of(_levels(weight, grid, input, output, narrow=narrow), grid)
    at_once = max(1, CELLS_AT_ONCE // max(weight.shape[1], 1))
    parts = []
    for start in range(0, weight.shape[0], at_once):
        rows = slice(start, start + at_once)
        part = Grid(
            grid.bits,
            grid.block,
            grid.scales[rows],
            None if grid.zeros is None else grid.zeros[rows],
        )
        levels = _levels(weight[rows], part, input, None, narrow=narrow)
        parts.append(codes_of(levels, part).codes)
    return Codes(grid, torch.cat(parts) if parts else weight.new_zeros(0, dtype=torch.uint8))


def _levels(
    weight: Tensor, grid: Grid, input: Side | None, output: Side | None, *, narrow: bool
) -> Tensor:
    """Return levels (rows, columns). `input` and `output` without U give no feedback."""
    along_rows = None if input is None else input.upper
    along_columns = None if output is None else output.upper
    factor = along_rows if along_rows is not None else along_columns
    cells = cells_of(
        weight, grid, narrow=narrow, dtype=torch.float32 if factor is None else factor.dtype
    )
    if factor is None:
        return cells.nearest()
    rows, columns = _order(output, weight.shape[0]), _order(input, weight.shape[1])
    ordered = cells.taken(rows, columns)
    if along_columns is None:
        found = column_feedback(ordered, factor)
    elif along_rows is None:
        found = column_feedback(ordered.mT, factor).mT
    else:
        found = wavefront(ordered, along_rows, along_columns)
    levels = torch.empty_like(found)
    levels[rows.unsqueeze(1), columns] = found
    return _nearest_where_dead(levels, cells, input, output)


def _order(side: Side | None, size: int) -> Tensor:
    return torch.arange(size) if side is None or side.upper is None else side.order


def _nearest_where_dead(
    levels: Tensor, cells: Cells, input: Side | None, output: Side | None
) -> Tensor:
    """Round weights that cost nothing to the nearest level. No other weight reads their error."""
    if input is not None and bool(input.dead.any()):
        levels = torch.where(input.dead, cells.nearest(), levels)
    if output is not None and bool(output.dead.any()):
        levels = torch.where(output.dead.unsqueeze(1), cells.nearest(), levels)
    return levels
