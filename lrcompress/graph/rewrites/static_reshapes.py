"""Make the target of a Reshape constant where the variable sizes keep their axes.

(batch, sequence, 384) -> (batch, sequence, 12, 32) needs no sizes computed at run time: in the
target [0, 0, 12, 32] each 0 keeps the input's size, and one -1 could be inferred. Without the
Shape, Gather and Concat nodes no part of it runs on the CPU when a GPU is used.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from lrcompress.graph.rewrites.rewrite import RewriteResult


def static_reshapes_(model: Any) -> RewriteResult:
    import onnx_ir as ir

    changes = 0
    for node in model.graph.all_nodes():
        if node.op_type != "Reshape" or node.inputs[1] is None:
            continue
        source, result = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or result.shape is None:
            continue
        sizes = _constant_sizes(list(source.shape), list(result.shape))
        if sizes is None:
            continue
        values = ir.tensor(np.array(sizes, dtype=np.int64))
        constant = ir.node("Constant", [], {"value": values})
        constant.outputs[0].dtype = ir.DataType.INT64
        constant.outputs[0].shape = ir.Shape([len(sizes)])
        node.graph.insert_before(node, constant)
        node.replace_input_with(1, constant.outputs[0])
        node.attributes.pop("allowzero", None)  # by default 0 keeps a size
        changes += 1
    return RewriteResult("static_reshapes", changes)


def _constant_sizes(source: list[Any], result: list[Any]) -> list[int] | None:
    """Return a constant target for a Reshape from `source` to `result`, or None."""
    sizes: list[int] = []
    for axis, size in enumerate(result):
        if isinstance(size, int):
            if size == 0:
                return None
            sizes.append(size)
        elif axis < len(source) and _same(size, source[axis]):
            sizes.append(0)
        else:
            sizes.append(-1)
    return sizes if sizes.count(-1) <= 1 else None


def _same(a: Any, b: Any) -> bool:
    """Whether both are the same named size; two unknown sizes are never the same."""
    return not isinstance(b, int) and a.value is not None and a.value == b.value
