"""Weights stored in number formats: which operators of a graph read them, one recipe per module."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from lrcompress.errors import ExportError
from lrcompress.graph.quantised.cast import cast_
from lrcompress.graph.quantised.dequantised import dequantised_
from lrcompress.graph.quantised.dequantised_matmul import dequantised_matmul_
from lrcompress.graph.quantised.dynamic_matmul import dynamic_matmul_
from lrcompress.graph.quantised.folded_matmul import folded_matmul_
from lrcompress.graph.quantised.gather_block_quantized import gather_block_quantized_
from lrcompress.graph.quantised.gather_rows import gather_rows_
from lrcompress.graph.quantised.layout import Layout
from lrcompress.graph.quantised.matmul_nbits import matmul_nbits_
from lrcompress.graph.quantised.note import note_on
from lrcompress.graph.quantised.other_constants import store_others_
from lrcompress.graph.quantised.storage import Context, Operators, Products, StorageOptions
from lrcompress.graph.quantised.uses import Consumer, Use, uses_of
from lrcompress.graph.quantised.weight_constants import WeightConstants
from lrcompress.graph.rewrites.rewrite import RewriteResult
from lrcompress.messages import listed
from lrcompress.number_formats import BLOCKS, CastFormat, Format, GridFormat
from lrcompress.structures.stored_codes import StoredWeight

Stored = Literal["cast", "dynamic", "blocks", "rows"]
Recipe = Callable[[Use, WeightConstants, Context], None]

# How a weight is stored, and what reads it -> the recipe. Other uses are in OTHERWISE.
STANDARD: Mapping[tuple[Stored, Consumer], Recipe] = {
    ("blocks", "MatMul"): dequantised_matmul_,
    ("blocks", "Gather"): gather_rows_,
    ("rows", "MatMul"): dequantised_matmul_,
    ("rows", "Gather"): gather_rows_,
    ("dynamic", "MatMul"): dynamic_matmul_,
}
CONTRIB: Mapping[tuple[Stored, Consumer], Recipe] = {
    ("blocks", "MatMul"): matmul_nbits_,
    ("blocks", "Gather"): gather_block_quantized_,
    ("rows", "MatMul"): dequantised_matmul_,
    ("rows", "Gather"): gather_rows_,
    ("dynamic", "MatMul"): dynamic_matmul_,
}
RECIPES: Mapping[Operators, Mapping[tuple[Stored, Consumer], Recipe]] = {
    "contrib": CONTRIB,
    "standard": STANDARD,
}
# gather_rows_ shifts bits of what it has looked up, for which CUDA has no kernel, and TensorRT has
# no arithmetic in bytes: there the whole table is dequantised
STANDARD_ON_GPU: Mapping[tuple[Stored, Consumer], Recipe] = {
    **STANDARD,
    ("blocks", "Gather"): dequantised_,
    ("rows", "Gather"): dequantised_,
}
OTHERWISE: Mapping[Stored, Recipe] = {
    "cast": cast_,
    "blocks": dequantised_,
    "rows": dequantised_,
    "dynamic": dequantised_,
}
OPSET = 21  # the first one in which DequantizeLinear has blocks and 4-bit types


def stored_as(format: Format) -> Stored:
    if isinstance(format, CastFormat):
        return "cast"
    assert isinstance(format, GridFormat)
    if format.activations:
        return "dynamic"
    return "blocks" if format.block in BLOCKS else "rows"


def needed_opset(weights: Iterable[StoredWeight]) -> int:
    """Return the lowest opset of the operators that read the weights; 0 if any will do."""
    return max((OPSET for w in weights if stored_as(w.format) in ("blocks", "rows")), default=0)


def check_provider(weights: Iterable[StoredWeight], provider: str) -> None:
    """Raise ExportError if the provider has no kernel for the format of a weight."""
    wrong = [w for w in weights if provider not in w.format.providers]
    if wrong:
        names = sorted({str(w.format) for w in wrong})
        raise ExportError(
            f"{listed([w.name for w in wrong])}: {' and '.join(names)} has no kernel on "
            f"{provider}; plan again with --provider {provider}, or export with --provider cpu"
        )


@dataclass(frozen=True)
class StorageResult(RewriteResult):
    # weight -> format, of the weights that are in the graph
    formats: Mapping[str, str] = field(default_factory=dict)


def _recipe(stored: Stored, use: Use, weight: StoredWeight, options: StorageOptions) -> Recipe:
    by_kernel = stored in ("blocks", "rows") and use.consumer == "MatMul"
    if by_kernel and weight.codes is not None and options.opens_as_floats(weight.codes.grid.bits):
        return folded_matmul_
    on_gpu = options.operators == "standard" and options.provider != "cpu"
    recipes = STANDARD_ON_GPU if on_gpu else RECIPES[options.operators]
    return recipes.get((stored, use.consumer), OTHERWISE[stored])


def store_weights_(
    model: Any, weights: Mapping[str, StoredWeight], options: StorageOptions
) -> StorageResult:
    """Replace float initializers by their stored values, and the nodes that read them by recipes.

    weights: by the name of the initializer, which must have the weight's own shape.
    """
    context = Context(model, options)
    formats: dict[str, str] = {}
    changes = 0
    read: dict[Recipe, list[str]] = defaultdict(list)
    for name, weight in weights.items():
        value = model.graph.initializers.get(name)
        if value is None:
            continue
        stored = stored_as(weight.format)
        uses = uses_of(value, weight)
        if not uses:
            continue
        chosen = [_recipe(stored, use, weight, options) for use in uses]
        constants = WeightConstants(context, weight, value, _layout(weight, chosen))
        for use, recipe in zip(uses, chosen, strict=True):
            recipe(use, constants, context)
            changes += 1
            if recipe is not cast_ or constants.cast() is not value:  # else it has the graph's type
                read[recipe].append(weight.name)
        constants.remove_plain_()
        formats[weight.name] = str(weight.format)
    others = store_others_(context, options.others)
    note = note_on(read, others=others, format=options.others)
    return StorageResult("store_weights", changes + len(others), note, formats)


def _layout(weight: StoredWeight, recipes: Collection[Recipe]) -> Layout:
    if weight.codes is None:
        return Layout()
    bits, recipes = weight.codes.grid.bits, set(recipes)
    blocks = matmul_nbits_ in recipes
    rows = gather_block_quantized_ in recipes or (gather_rows_ in recipes and bits < 8)
    rows = not blocks and (rows or bits == 2)  # at opset 21 there is no type of 2 bits
    alone = recipes <= {dequantised_matmul_, dynamic_matmul_}
    return Layout(blocks, rows, columns_first=alone and not blocks and not rows)


__all__ = [
    "CONTRIB",
    "OPSET",
    "RECIPES",
    "STANDARD",
    "Operators",
    "Products",
    "StorageOptions",
    "StorageResult",
    "check_provider",
    "needed_opset",
    "store_weights_",
    "stored_as",
]
