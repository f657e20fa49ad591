"""Constants that no layer's weight is, stored in fewer bits where that loses nothing.

A compressed network may hold values of 16 bits, or rows of 8-bit codes, in float32. They are
recognised by the values alone. The file holds a Cast and, for codes, a Mul, which the session
computes when it opens the file.
"""

from __future__ import annotations

from typing import Any

import torch

from lrcompress.graph.expanded.expansion import CODES, SCALES
from lrcompress.graph.quantised.storage import Context
from lrcompress.network.other_weights import SMALLEST
from lrcompress.number_formats.exact_rows import exact_rows


def store_others_(context: Context, format: str) -> tuple[str, ...]:
    """Store constants in fp16 or int8; return their names. format: "fp32" stores none."""
    import onnx_ir as ir

    if format == "fp32":
        return ()
    done: list[str] = []
    for value in list(context.model.graph.initializers.values()):
        tensor = value.const_value
        if value.dtype != ir.DataType.FLOAT or tensor is None or tensor.size < SMALLEST:
            continue
        if len(value.shape) < 2 or not value.uses() or value.is_graph_output():
            continue
        name = str(value.name)
        if _stored(context, value, format):
            done.append(name)
    return tuple(done)


def _stored(context: Context, value: Any, format: str) -> bool:
    """Replace one initializer if its values are exact in the format."""
    import onnx_ir as ir

    values = torch.tensor(value.const_value.numpy())
    single, name = ir.DataType.FLOAT, value.name
    if format == "fp16":
        half = values.half()
        if not torch.equal(half.float(), values):
            return False
        context.rename_(value, f"{name}.plain")
        stored = context.initializer(f"{name}.half", half.numpy())
        made = _cast(context, stored, name, single)
    else:
        found = exact_rows(values)
        if found is None:
            return False
        context.rename_(value, f"{name}.plain")
        codes = context.initializer(name + CODES, found.codes.numpy())
        scales = context.initializer(name + SCALES, found.scales.numpy())
        wide = _cast(context, codes, f"{name}.code_values", single)
        made = context.constant("Mul", [wide, scales], name, dtype=single, shape=values.shape)
    value.replace_all_uses_with(made)
    context.model.graph.initializers.pop(value.name, None)
    return True


def _cast(context: Context, value: Any, name: str, dtype: Any) -> Any:
    return context.constant(
        "Cast", [value], name, dtype=dtype, shape=value.shape, attributes={"to": int(dtype)}
    )
