"""Search of the grid of each block: the range that rounds its weights with the least error.

The full range of a block rounds the largest weight exactly and the others coarsely. So the range is
shrunk by each of a few factors, the weights are rounded to the nearest code, and the factor with
the least weighted squared error is kept.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lrcompress.number_formats.codes import Grid

# Shares of the range that are tried; finer steps gain two thousandths of the loss on MiniLM
SHRINKS = (1.0, 0.94, 0.88, 0.82, 0.76, 0.7, 0.64, 0.58, 0.52, 0.46)
SHRINKS_OF_8_BITS = SHRINKS[:3]
AT_ONCE = 2**17  # weights searched at once, few enough for a processor's cache
SMALLEST_SCALE = 2.0**-24  # the smallest positive float16


def searched_grid(
    weight: Tensor,
    importance: Tensor | None,
    *,
    bits: int,
    block: int,
    symmetric: bool,
    narrow: bool,
    factors: Sequence[float] | None = None,
) -> Grid:
    """Return the grid of `weight` (rows, columns).

    importance: of each squared error, (columns,) or (rows, columns). factors: shares of the range
    to try; None: those that suit the bits.
    """
    if factors is None:
        factors = SHRINKS if bits < 8 else SHRINKS_OF_8_BITS
    rows, columns = weight.shape
    at_once = max(1, AT_ONCE // max(columns, 1))
    scales, zeros = [], []
    for start in range(0, rows, at_once):
        part = weight[start : start + at_once].float()
        share = importance
        if share is not None:
            share = share.float()
            share = share[start : start + at_once] if share.dim() == 2 else share.expand_as(part)
        found = _search(
            _in_blocks(part, block),
            None if share is None else _in_blocks(share, block),
            bits=bits,
            symmetric=symmetric,
            narrow=narrow,
            factors=factors,
        )
        scales.append(found[0])
        zeros.append(found[1])
    stored = None if symmetric else torch.cat(zeros).to(torch.uint8)
    return Grid(bits, block, torch.cat(scales), stored)


def _in_blocks(values: Tensor, block: int) -> Tensor:
    rows, columns = values.shape
    padding = -columns % block
    if padding:
        values = torch.nn.functional.pad(values, (0, padding))
    return values.reshape(rows, -1, block)  # (rows, blocks, block)


def _search(
    weight: Tensor,
    importance: Tensor | None,
    *,
    bits: int,
    symmetric: bool,
    narrow: bool,
    factors: Sequence[float],
) -> tuple[Tensor, Tensor]:
    """Return the scales and zero points of blocks: both (rows, blocks)."""
    levels, middle = (1 << bits) - 1, 1 << (bits - 1)
    least = weight.amin(-1).clamp_max_(0)
    most = weight.amax(-1).clamp_min_(0)
    best = torch.full_like(least, torch.inf)
    scale, zero = torch.ones_like(least), torch.full_like(least, float(middle))
    # Without zero points the middle code leaves one more level below zero than above. A negative
    # scale turns the grid around.
    signs = (1.0,) if narrow or not symmetric else (1.0, -1.0)
    widest = torch.maximum(most, -least) / (middle - 1 if narrow else middle)
    at, lowest = zero, float((1 if narrow else 0) - middle)
    error = torch.empty_like(weight)
    for factor in factors:
        for sign in signs:
            if symmetric:
                tried = _storable(widest * factor).mul_(sign)
                torch.div(weight, tried.unsqueeze(-1), out=error).round_()
                error.clamp_(lowest, float(levels - middle))
            else:
                tried = _storable((most - least) * (factor / levels))
                at = (-least * factor / tried).round_().clamp_(0, levels)
                torch.div(weight, tried.unsqueeze(-1), out=error).add_(at.unsqueeze(-1)).round_()
                error.clamp_(0, levels).sub_(at.unsqueeze(-1))
            error.mul_(tried.unsqueeze(-1)).sub_(weight).square_()
            if importance is not None:
                error.mul_(importance)
            loss = error.sum(-1)
            better = loss < best
            best = torch.where(better, loss, best)
            scale = torch.where(better, tried, scale)
            zero = torch.where(better, at, zero)
    return scale, zero


def _storable(scale: Tensor) -> Tensor:
    """Round positive scales to float16 values, and zeros to one."""
    stored = scale.to(torch.float16).float()
    stored = torch.where(scale > 0, stored.clamp_min(SMALLEST_SCALE), torch.ones_like(stored))
    return stored.clamp_max(torch.finfo(torch.float16).max)
