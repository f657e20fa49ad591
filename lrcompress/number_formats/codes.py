"""Integer codes of a matrix with the grid that they refer to, and their packing into bytes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Grid:
    """The affine grid of each block of a row: values scale * (code - zero), code in [0, 2^bits).

    A block is `block` consecutive columns; the last block of a row may be shorter. Scales are exact
    in float16.
    """

    bits: int
    block: int  # columns per scale; at most the number of columns
    scales: Tensor  # (rows, blocks), float32
    zeros: Tensor | None = None  # (rows, blocks), uint8; None: 2^(bits - 1) everywhere

    @property
    def middle(self) -> int:
        """The code of zero in a grid without stored zero points."""
        return 1 << (self.bits - 1)

    def per_column(self, columns: int) -> tuple[Tensor, Tensor]:
        """Return the scales and zero points of every weight, float32: both (rows, columns)."""
        rows = self.scales.shape[0]
        index = torch.arange(columns, device=self.scales.device) // self.block
        scales = self.scales.float()[:, index]
        if self.zeros is None:
            return scales, torch.full_like(scales, self.middle)
        return scales, self.zeros[:, index].reshape(rows, columns).float()

    def nearest(self, weight: Tensor) -> Tensor:
        """Return the nearest code of each weight: (rows, columns), uint8."""
        scales, zeros = self.per_column(weight.shape[1])
        codes = (weight.float() / scales + zeros).round_().clamp_(0, (1 << self.bits) - 1)
        return codes.to(torch.uint8)


@dataclass(frozen=True, eq=False)
class Codes:
    """A rounded matrix; codes: (rows, columns), uint8, one code per byte."""

    grid: Grid
    codes: Tensor

    def dequantised(self) -> Tensor:
        """Return the matrix that the codes stand for: (rows, columns), float32."""
        return dequantised(
            self.codes,
            self.grid.scales,
            self.grid.zeros,
            bits=self.grid.bits,
            block=self.grid.block,
        )


def dequantised(
    codes: Tensor, scales: Tensor, zeros: Tensor | None, *, bits: int, block: int
) -> Tensor:
    """Return scale * (code - zero) for codes of (rows, columns), in float32.

    Differentiable in the scales.
    """
    rows, columns = codes.shape
    blocks = scales.shape[1]
    padding = blocks * block - columns
    centred = codes.to(torch.float32)
    if padding:
        centred = torch.nn.functional.pad(centred, (0, padding))
    centred = centred.reshape(rows, blocks, block)
    zero = float(1 << (bits - 1)) if zeros is None else zeros.float().unsqueeze(-1)
    values = (centred - zero) * scales.float().unsqueeze(-1)  # (rows, blocks, block)
    return values.reshape(rows, blocks * block)[:, :columns]


def packed(codes: Tensor, bits: int) -> Tensor:
    """Pack codes (rows, columns) into bytes (rows, ceil(columns * bits / 8)), low bits first."""
    per_byte = 8 // bits
    if per_byte == 1:
        return codes.contiguous()
    rows, columns = codes.shape
    padding = -columns % per_byte
    wide = torch.nn.functional.pad(codes, (0, padding)).reshape(rows, -1, per_byte)
    out = torch.zeros(wide.shape[:2], dtype=torch.uint8, device=codes.device)
    for place in range(per_byte):
        out |= wide[..., place] << (bits * place)
    return out


def unpacked(stored: Tensor, bits: int, columns: int) -> Tensor:
    """Undo `packed`: (rows, bytes) -> (rows, columns)."""
    per_byte = 8 // bits
    if per_byte == 1:
        return stored
    mask = (1 << bits) - 1
    parts = [(stored >> (bits * place)) & mask for place in range(per_byte)]
    return torch.stack(parts, -1).reshape(stored.shape[0], -1)[:, :columns]
