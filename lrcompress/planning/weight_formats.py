"""The number formats in which a structure stores its factors, as latencies depend on them."""

from __future__ import annotations

from math import prod

from lrcompress.layers import LayerSpec
from lrcompress.number_formats import CastFormat, Format, parse_format
from lrcompress.structures import Structure

FLOAT = "fp32"
# Zero points cost no time in MatMulNBits: 0.98-1.03 of the format without them (ONNX Runtime 1.31)
TIMED_AS = {"uint4": "int4", "uint2": "int2"}


def inner_of(structure: Structure) -> Structure:
    """Return the structure whose factors are quantised, or the structure itself."""
    inner = getattr(structure, "structure", structure)
    assert isinstance(inner, Structure)
    return inner


def formats_of(structure: Structure) -> tuple[Format, ...]:
    """Return the formats of a structure: one for all factors, one for each, or () for floats."""
    found: tuple[Format, ...] = getattr(structure, "formats", ())
    return found


def format_shares(structure: Structure, spec: LayerSpec) -> dict[str, float]:
    """Return the share of the parameters in each format, as the latency table names it.

    On every provider a cast format's weight is cast when the session is opened, so that it takes
    the time of fp32.
    """
    formats, inner = formats_of(structure), inner_of(structure)
    if not formats:
        return {FLOAT: 1.0}
    if len(formats) == 1:
        return {timed_name(formats[0]): 1.0}
    sizes = [prod(shape) for shape in inner.factor_shapes(spec).values()]
    shares: dict[str, float] = {}
    for kind, size in zip(formats, sizes, strict=True):
        name = timed_name(kind)
        shares[name] = shares.get(name, 0.0) + size / max(sum(sizes), 1)
    return shares


def timed_name(kind: Format) -> str:
    """Return the text of the format that takes the same time."""
    if isinstance(kind, CastFormat):
        return FLOAT
    name, slash, block = str(kind).partition("/")
    return TIMED_AS.get(name, name) + slash + block


def name_and_block(text: str) -> tuple[str, int]:
    """Split "int4/32" into its name and its block; 0 for a format without blocks."""
    kind = parse_format(text)
    return kind.type_name, int(getattr(kind, "block", 0))
