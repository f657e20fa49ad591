"""Weights of 4 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrcompress.number_formats.format import GridFormat


@dataclass(frozen=True)
class Int4(GridFormat):
    """4 bits per weight, one scale per block of a row, zero in the middle."""

    type_name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4
    block: int = 32
