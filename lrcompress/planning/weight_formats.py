"""The number formats in which a structure stores its factors, as latencies depend on them."""

from __future__ import annotations

from math import prod

from lrcompress.layers import LayerSpec
from lrcompress.number_formats import CastFormat, Format, parse_format
from lrcompress.structures import Quantised, Structure

FLOAT = "fp32"
# Zero points cost no time in MatMulNBits: 0.98-1.03 of the format without them (ONNX Runtime 1.31)
TIMED_AS = {"uint4": "int4", "uint2": "int2"}


def format_shares(structure: Structure, spec: LayerSpec) -> dict[str, float]:
    """Return the share of the parameters in each format, as the latency table names it.

    On every provider a cast format's weight is cast when the session is opened, so that it takes
    the time of fp32.
    """
    if not isinstance(structure, Quantised):
        return {FLOAT: 1.0}
    sizes = {name: prod(shape) for name, shape in structure.factor_shapes(spec).items()}
    shares: dict[str, float] = {}
    for factor, kind in structure.format_of(spec).items():
        name = timed_name(kind)
        shares[name] = shares.get(name, 0.0) + sizes[factor] / max(sum(sizes.values()), 1)
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
