"""Rounding to a given grid with error feedback along those sides whose moment is full."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lrcompress.number_formats import Codes, Grid
from lrcompress.rounding.cells import cells_of, codes_of
from lrcompress.rounding.column_feedback import column_feedback
from lrcompress.rounding.prepared_metric import PreparedMetric, Side
from lrcompress.rounding.wavefront import wavefront

CELLS_AT_ONCE = 2**24  # weights in one part, where rows do not depend on each other


def with_feedback(weight: Tensor, grid: Grid, metric: PreparedMetric, *, narrow: bool) -> Codes:
    """Return codes of `weight` (rows, columns) on `grid`; narrow: code 0 stays unused."""
    input, output = metric.input, metric.output
    if output is not None and output.upper is not None:
        return Codes(grid, _codes(weight, grid, input, output, narrow=narrow))
    at_once = max(1, CELLS_AT_ONCE // max(weight.shape[1], 1))
    codes = torch.empty(weight.shape, dtype=torch.uint8, device=weight.device)
    for start in range(0, weight.shape[0], at_once):
        rows = slice(start, start + at_once)
        part = replace(
            grid,
            scales=grid.scales[rows],
            zeros=None if grid.zeros is None else grid.zeros[rows],
        )
        codes[rows] = _codes(weight[rows], part, input, None, narrow=narrow)
    return Codes(grid, codes)


def _codes(
    weight: Tensor, grid: Grid, input: Side | None, output: Side | None, *, narrow: bool
) -> Tensor:
    """Return codes (rows, columns). `input` and `output` without U give no feedback."""
    along_rows = None if input is None else input.upper
    along_columns = None if output is None else output.upper
    factor = along_rows if along_rows is not None else along_columns
    rows, columns = _order(output), _order(input)
    cells = cells_of(
        weight,
        grid,
        rows,
        columns,
        narrow=narrow,
        dtype=torch.float32 if factor is None else factor.dtype,
    )
    if along_rows is not None and along_columns is not None:
        levels = wavefront(cells, along_rows, along_columns)
    elif along_rows is not None:
        levels = column_feedback(cells, along_rows)
    elif along_columns is not None:
        levels = column_feedback(cells.mT, along_columns).mT
    else:
        levels = cells.nearest()
    codes = codes_of(levels, cells, narrow=narrow)
    if rows is not None:
        codes = codes[rows.argsort()]
    if columns is not None:
        codes = codes.index_select(1, columns.argsort())
    return _nearest_where_dead(codes, weight, grid, input, output, narrow=narrow)


def _order(side: Side | None) -> Tensor | None:
    return None if side is None or side.upper is None else side.order


def _nearest_where_dead(
    codes: Tensor,
    weight: Tensor,
    grid: Grid,
    input: Side | None,
    output: Side | None,
    *,
    narrow: bool,
) -> Tensor:
    """Round weights that cost nothing to the nearest code. No other weight reads their error."""
    columns = input.dead if input is not None and bool(input.dead.any()) else None
    rows = output.dead if output is not None and bool(output.dead.any()) else None
    if columns is None and rows is None:
        return codes
    nearest = grid.nearest(weight).clamp_(1 if narrow else 0)
    if columns is not None:
        codes = torch.where(columns, nearest, codes)
    return codes if rows is None else torch.where(rows.unsqueeze(1), nearest, codes)
