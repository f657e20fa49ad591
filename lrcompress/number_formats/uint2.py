"""Weights of 2 bits with a zero point per block."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrcompress.number_formats.format import GridFormat


@dataclass(frozen=True)
class UInt2(GridFormat):
    """2 bits per weight, one scale and one zero point per block of a row."""

    type_name: ClassVar[str] = "uint2"
    providers: ClassVar[tuple[str, ...]] = ("cpu", "cuda")  # TensorRT has 4 and 8 bits around 0
    bits: ClassVar[int] = 2
    symmetric: ClassVar[bool] = False
    block: int = 32
