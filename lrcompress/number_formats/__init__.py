"""Number formats of weights. Each format is one file and one row of FORMATS."""

from __future__ import annotations

from lrcompress.errors import PlanError
from lrcompress.messages import shown
from lrcompress.number_formats.bf16 import Bf16
from lrcompress.number_formats.codes import Codes, Grid, dequantised, packed, unpacked
from lrcompress.number_formats.format import BLOCKS, CastFormat, Format, GridFormat
from lrcompress.number_formats.fp16 import Fp16
from lrcompress.number_formats.fp32 import Fp32
from lrcompress.number_formats.int2 import Int2
from lrcompress.number_formats.int4 import Int4
from lrcompress.number_formats.int8 import Int8
from lrcompress.number_formats.int8_dynamic import Int8Dynamic
from lrcompress.number_formats.uint2 import UInt2
from lrcompress.number_formats.uint4 import UInt4

FORMATS: dict[str, type[Format]] = {
    "fp32": Fp32,
    "fp16": Fp16,
    "bf16": Bf16,
    "int8": Int8,
    "int8-dynamic": Int8Dynamic,
    "int4": Int4,
    "uint4": UInt4,
    "int2": Int2,
    "uint2": UInt2,
}


def parse_format(text: str) -> Format:
    """Return the format of a text such as "fp16", "int4" or "int4/32".

    Raises:
        PlanError: an unknown name, or a block size that no kernel takes.
    """
    name, slash, size = text.strip().partition("/")
    kind = FORMATS.get(name)
    if kind is None:
        raise PlanError(f"format {shown(text)} is not one of {', '.join(FORMATS)}")
    if not slash:
        return kind()
    if not issubclass(kind, GridFormat) or kind is Int8Dynamic:
        raise PlanError(f"format {shown(text)}: {name} takes no block size; write {name}")
    if size not in map(str, BLOCKS):
        known = ", ".join(map(str, BLOCKS))
        raise PlanError(f"format {shown(text)}: the block size may be {known}; write {name}/32")
    return kind(block=int(size))


__all__ = [
    "BLOCKS",
    "FORMATS",
    "Bf16",
    "CastFormat",
    "Codes",
    "Format",
    "Fp16",
    "Fp32",
    "Grid",
    "GridFormat",
    "Int2",
    "Int4",
    "Int8",
    "Int8Dynamic",
    "UInt2",
    "UInt4",
    "dequantised",
    "packed",
    "parse_format",
    "unpacked",
]
