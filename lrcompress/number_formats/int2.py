"""Weights of 2 bits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrcompress.number_formats.format import GridFormat


@dataclass(frozen=True)
class Int2(GridFormat):
    """2 bits per weight, one scale per block of a row, zero in the middle."""

    type_name: ClassVar[str] = "int2"
    providers: ClassVar[tuple[str, ...]] = ("cpu", "cuda")  # TensorRT has 4 and 8 bits around 0
    bits: ClassVar[int] = 2
    block: int = 32
