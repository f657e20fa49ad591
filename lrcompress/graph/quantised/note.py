"""A note for the user on how a graph reads its stored weights: by which operators, and when."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lrcompress.graph.quantised.cast import cast_
from lrcompress.graph.quantised.dequantised import dequantised_
from lrcompress.graph.quantised.dequantised_matmul import dequantised_matmul_
from lrcompress.graph.quantised.dynamic_matmul import dynamic_matmul_
from lrcompress.graph.quantised.folded_matmul import folded_matmul_
from lrcompress.graph.quantised.gather_block_quantized import gather_block_quantized_
from lrcompress.graph.quantised.gather_rows import gather_rows_
from lrcompress.graph.quantised.matmul_nbits import matmul_nbits_
from lrcompress.messages import listed

# What each recipe does with the named weights
WORDS: Mapping[Callable[..., Any], str] = {
    matmul_nbits_: "MatMulNBits multiplies by the codes of {}",
    dequantised_matmul_: "DequantizeLinear and MatMul, which a session fuses to MatMulNBits where "
    "it can, multiply by {}",
    dynamic_matmul_: "DynamicQuantizeLinear and MatMulInteger multiply inputs that are rounded to "
    "8 bits by {}",
    gather_block_quantized_: "GatherBlockQuantized looks up rows of {} and dequantises these rows",
    gather_rows_: "Gather looks up rows of {}, and only these rows are dequantised",
    dequantised_: "DequantizeLinear makes all of {} floats in every run: smaller, not faster",
    folded_matmul_: "MatMul multiplies by {}, floats from when the file is opened on: smaller, not "
    "faster",
    cast_: "Cast makes {} floats of the graph's precision when the file is opened: smaller, not "
    "faster",
}


OTHERS = "{} outside of layers are stored in {} and become floats when the file is opened"


def note_on(
    read: Mapping[Callable[..., Any], Sequence[str]],
    *,
    others: Sequence[str] = (),
    format: str = "",
) -> str:
    """Return the note; "" without stored weights.

    read: the weights that each recipe reads. others: constants outside of layers in `format`.
    """
    parts = [
        words.format(listed(list(dict.fromkeys(read[recipe]))))
        for recipe, words in WORDS.items()
        if read.get(recipe)
    ]
    if others:
        parts.append(OTHERS.format(listed(others), format))
    return f"weights in number formats: {'; '.join(parts)}" if parts else ""
