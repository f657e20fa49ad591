"""Refit of the scales to the chosen codes.

With the codes fixed, 1/2 tr(G E C E^T) is quadratic in the scales, E = W - scale * (code - zero). A
few steps of conjugate gradients, preconditioned by the diagonal, find nearly the best scales.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrcompress.number_formats import Codes
from lrcompress.rounding.moment_product import right_times, times
from lrcompress.rounding.rounding_task import RoundingTask

ITERATIONS = 3  # more of them gain two thousandths
# The scales of a part that costs more operations stay as they are: the time of one iteration grows
# with (rows + columns) * rows * columns, faster than that of the rounding itself.
MOST_OPERATIONS = 5e10
FINEST_BITS = 4  # with more bits, rounding the scales to float16 costs what the refit gains
ROWS_AT_ONCE = 2**22  # weights in one part, where rows do not depend on each other
SMALLEST = 2.0**-24  # positive float16
FLOOR = 1e-6  # share of the mean of the preconditioner


def refitted(task: RoundingTask, codes: Codes) -> Codes:
    """Return the same codes with better scales, still exact in float16."""
    if codes.grid.bits > FINEST_BITS or codes.codes.numel() == 0:
        return codes
    rows, columns = task.weight.shape
    full = task.output is not None and task.output.dim() == 2
    at_once = rows if full else max(1, ROWS_AT_ONCE // columns)
    operations = columns if task.input is not None and task.input.dim() == 2 else 0
    operations += rows if full else 0
    if 2.0 * ITERATIONS * operations * min(rows, at_once) * columns > MOST_OPERATIONS:
        return codes
    scales = [_part(task, codes, slice(k, k + at_once)) for k in range(0, rows, at_once)]
    return replace(codes, grid=replace(codes.grid, scales=torch.cat(scales)))


def _part(task: RoundingTask, codes: Codes, rows: slice) -> Tensor:
    """Return the scales of some rows, which must hold all that G makes depend on each other."""
    grid = codes.grid
    old = grid.scales[rows]
    zeros = float(grid.middle) if grid.zeros is None else grid.zeros[rows].float().unsqueeze(-1)
    block = grid.block
    levels = _in_blocks(codes.codes[rows].float(), block).sub_(zeros)
    levels = _in_blocks(levels.flatten(1)[:, : task.weight.shape[1]], block)
    output = task.output
    if output is not None and output.dim() == 1:
        output = output[rows]
    weight = task.weight[rows].float()
    found = _Scales(levels, weight.shape[1], _float(task.input), _float(output)).fitted(weight, old)
    stored = found.to(torch.float16).float()
    usable = stored.isfinite() & (stored.abs() >= SMALLEST)
    return stored if bool(usable.all()) else old


@dataclass(frozen=True, eq=False)
class _Scales:
    """The normal equations of the scales; levels: (rows, blocks, block), zero where padded."""

    levels: Tensor
    columns: int
    input: Tensor | None
    output: Tensor | None

    def fitted(self, weight: Tensor, start: Tensor) -> Tensor:
        """Return scales (rows, blocks) after a few iterations from `start`."""
        scales = start.clone()
        inverse = self._inverse_diagonal()
        residual = self._gradient(weight - self._values(scales))
        ahead = inverse * residual
        direction, size = ahead, (residual * ahead).sum()
        for _ in range(ITERATIONS):
            image = self._gradient(self._values(direction))
            curvature = (direction * image).sum()
            if not bool(curvature > 0):
                break
            step = size / curvature
            scales = scales + step * direction
            residual = residual - step * image
            ahead = inverse * residual
            before, size = size, (residual * ahead).sum()
            direction = ahead + (size / before) * direction
        return scales

    def _values(self, scales: Tensor) -> Tensor:
        """Return scale * level: (rows, columns)."""
        return (self.levels * scales.unsqueeze(-1)).flatten(1)[:, : self.columns]

    def _gradient(self, error: Tensor) -> Tensor:
        """Return for each block the sum of level * (G error C): (rows, blocks)."""
        product = right_times(times(self.output, error), self.input)
        return (self.levels * _in_blocks(product, self.levels.shape[2])).sum(-1)

    def _inverse_diagonal(self) -> Tensor:
        """Return 1 / (G_ii level^T C_block level), or 0 for a block that costs nothing."""
        _, blocks, block = self.levels.shape
        if self.input is None or self.input.dim() == 1:
            cost = self.levels.new_ones(self.columns) if self.input is None else self.input
            diagonal = (self.levels.square() * _in_blocks(cost.unsqueeze(0), block)).sum(-1)
        else:
            moments = self.levels.new_zeros(blocks, block, block)
            for k in range(blocks):
                part = self.input[k * block : (k + 1) * block, k * block : (k + 1) * block]
                moments[k, : part.shape[0], : part.shape[1]] = part
            levels = self.levels.transpose(0, 1)  # (blocks, rows, block)
            diagonal = (levels.bmm(moments) * levels).sum(-1).mT  # (rows, blocks)
        if self.output is not None:
            on_rows = self.output if self.output.dim() == 1 else self.output.diagonal()
            diagonal = diagonal * on_rows.unsqueeze(-1)
        known = diagonal > FLOOR * diagonal.mean()
        return torch.where(known, 1 / diagonal, 0.0)


def _in_blocks(values: Tensor, block: int) -> Tensor:
    """Return (rows, columns) as (rows, blocks, block), padded with zeros."""
    padding = -values.shape[1] % block
    if padding:
        values = torch.nn.functional.pad(values, (0, padding))
    return values.reshape(values.shape[0], -1, block)


def _float(moment: Tensor | None) -> Tensor | None:
    return None if moment is None else moment.float()
