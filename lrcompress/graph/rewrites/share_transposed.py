"""Share a weight that the tracer stored twice, plain and transposed.

A tied output head multiplies by the transpose of the embedding. ONNX Runtime transposes constants
when it opens the file, so sharing costs nothing at run time.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import numpy as np

from lrcompress.graph.rewrites.rewrite import RewriteResult


def share_transposed_(model: Any) -> RewriteResult:
    import onnx_ir as ir

    by_shape: dict[tuple[int, int], list[Any]] = defaultdict(list)
    for value in model.graph.initializers.values():
        shape = tuple(value.const_value.shape)
        if len(shape) == 2 and min(shape) > 1 and value.dtype.is_floating_point():
            by_shape[shape].append(value)
    changes = 0
    for shape, values in list(by_shape.items()):
        others = by_shape.get(shape[::-1], [])
        for kept in values:
            for copy in list(others):
                if not _may_go(copy, kept) or not _transposes(kept, copy):
                    continue
                node = ir.node("Transpose", [kept], {"perm": [1, 0]}, name=f"{copy.name}.shared")
                node.outputs[0].name = f"{copy.name}.shared"
                node.outputs[0].dtype, node.outputs[0].shape = copy.dtype, copy.shape
                copy.replace_all_uses_with(node.outputs[0])
                model.graph.insert_before(model.graph[0], node)
                del model.graph.initializers[copy.name]
                others.remove(copy)
                changes += 1
    return RewriteResult("share_transposed", changes)


def _may_go(copy: Any, kept: Any) -> bool:
    """Whether the copy can be removed. A copy that a Gather reads is kept, as lookups read rows."""
    if copy is kept or copy.is_graph_output() or not copy.uses() or not kept.uses():
        return False
    return all(user.op_type != "Gather" for user, _ in copy.uses())


def _transposes(kept: Any, copy: Any) -> bool:
    if kept.dtype != copy.dtype:
        return False
    a, b = kept.const_value.numpy(), copy.const_value.numpy().T
    # Comparing one row first avoids most full comparisons
    return bool(np.array_equal(a[0], b[0])) and bool(np.array_equal(a, b))
