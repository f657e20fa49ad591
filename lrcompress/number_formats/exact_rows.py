"""Rows of 8-bit codes whose scales follow from the values, so that nothing else has to be kept.

A value is code * scale, with codes of -127..127 and one scale for all values of a row. The largest
value of a row has the code 127 or -127, and a scale has few significant bits, so that both products
and quotients with it are exact in float32.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

MOST = 127
SCALE_BITS = 12  # significant bits; with the 7 of a code, 19 of float32's 24
SMALLEST = 2.0**-100  # largest value of a row that is not stored as zeros


@dataclass(frozen=True)
class ExactRows:
    """codes: int8, the shape of the values; scales: float32, broadcast to it."""

    codes: Tensor
    scales: Tensor


def rounded_rows(values: Tensor) -> Tensor:
    """Round a float32 tensor to such a grid, with a scale for each row (see `row_axes`)."""
    scales = _scales(values, row_axes(tuple(values.shape)))
    return (values / scales).round().clamp(-MOST, MOST) * scales


def exact_rows(values: Tensor) -> ExactRows | None:
    """Return the codes of a float32 tensor that has such a grid along any of its axes, else None.

    A graph may hold the rows in another shape, transposed or joined with others.
    """
    shape = tuple(values.shape)
    axes = range(len(shape))
    candidates = [row_axes(shape), *(tuple(a for a in axes if a != axis) for axis in axes)]
    for inside in dict.fromkeys([*candidates, (len(shape) - 1,)]):
        scales = _scales(values, inside)
        codes = (values / scales).round()
        if bool((codes.abs() <= MOST).all()) and torch.equal(codes * scales, values):
            return ExactRows(codes.to(torch.int8), scales)
    return None


def row_axes(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Return the axes inside a row: the last one, or all but the first if it is short."""
    return (len(shape) - 1,) if shape[-1] >= 16 else tuple(range(1, len(shape)))


def nbytes(shape: tuple[int, ...]) -> int:
    """Return the bytes of the codes and scales of a tensor that `rounded_rows` rounded."""
    rows = prod(size for axis, size in enumerate(shape) if axis not in row_axes(shape))
    return prod(shape) + 4 * rows


def _scales(values: Tensor, inside: tuple[int, ...]) -> Tensor:
    largest = values.abs().amax(inside, keepdim=True)
    mantissa, exponent = torch.frexp(largest / MOST)
    steps = 2.0**SCALE_BITS
    scales = torch.ldexp((mantissa * steps).round() / steps, exponent)
    return torch.where(largest > SMALLEST, scales, torch.ones_like(scales))
