"""Refusal of values that a number format cannot hold: its scales, or its values, are float16."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.errors import FitError
from lrcompress.number_formats import CastFormat, Codes, Format

LARGEST_SCALE = torch.finfo(torch.float16).max
# The least that the largest scale may be, by the bits of the codes. A smaller one has so few digits
# in float16 that values are clipped, and the error is more than 1.5 times that of an exact scale
SMALLEST_SCALE = {8: 2.0**-19, 4: 2.0**-22, 2: 2.0**-22}
SQUARED_ERROR = 1e-5  # of a cast over the squared values; bfloat16's own is 2e-6


def check_range(value: Codes | Tensor, format: Format) -> None:
    """Raise FitError if a rounded matrix, or one to be cast, is beyond the range of its format."""
    fault = _of_codes(value) if isinstance(value, Codes) else _of_cast(value, format)
    if fault:
        scales = ", whose scales are float16" if isinstance(value, Codes) else ""
        raise FitError(
            f"its values are too {fault} for {format}{scales}; use bf16, or leave its format out"
        )


def _of_codes(codes: Codes) -> str:
    scales = codes.grid.scales.abs()
    scales = scales[scales != 1]  # that of a block of zeros
    if not scales.numel():
        return ""
    if float(scales.max()) >= LARGEST_SCALE:
        return "large"
    return "small" if float(scales.max()) < SMALLEST_SCALE[codes.grid.bits] else ""


def _of_cast(values: Tensor, format: Format) -> str:
    assert isinstance(format, CastFormat)
    if not values.numel():
        return ""
    if float(values.abs().max()) > torch.finfo(format.dtype).max:
        return "large"
    values = values.double()
    lost = values.to(format.dtype).double().sub_(values).square_().sum()
    return "small" if float(lost) > SQUARED_ERROR * float(values.square().sum()) else ""
