"""The accuracy levels of com.microsoft.MatMulNBits that we write and look for."""

from __future__ import annotations

from typing import Final

FLOAT32: Final = 1  # products are computed in float32
ROUNDED: Final = 4  # inputs are rounded to 8 bits by blocks
