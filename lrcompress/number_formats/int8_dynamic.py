"""Int8 weights per row, and inputs rounded to uint8 at run time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lrcompress.number_formats.format import GridFormat


@dataclass(frozen=True)
class Int8Dynamic(GridFormat):
    """One scale a row, codes -127..127; the products are computed in integers.

    Each call rounds its whole input to one uint8 grid (ONNX DynamicQuantizeLinear). The CUDA
    provider has no kernel for it.
    """

    type_name: ClassVar[str] = "int8-dynamic"
    bits: ClassVar[int] = 8
    narrow: ClassVar[bool] = True
    activations: ClassVar[bool] = True
    providers: ClassVar[tuple[str, ...]] = ("cpu",)
