"""Weights of 8 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrcompress.number_formats.format import GridFormat


@dataclass(frozen=True)
class Int8(GridFormat):
    """8 bits per weight, one scale per block of a row, zero in the middle."""

    type_name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8
    block: int = 128
