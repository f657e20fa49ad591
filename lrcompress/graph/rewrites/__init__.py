"""Rewrites of an exported graph, one per module, applied in the order of REWRITES."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lrcompress.graph.rewrites.divide_by_root import divide_by_root_
from lrcompress.graph.rewrites.forget_tracing import forget_tracing_
from lrcompress.graph.rewrites.name_weights import name_weights_
from lrcompress.graph.rewrites.rewrite import RewriteResult
from lrcompress.graph.rewrites.share_transposed import share_transposed_
from lrcompress.graph.rewrites.static_reshapes import static_reshapes_
from lrcompress.graph.rewrites.trivial_masks import trivial_masks_
from lrcompress.graph.rewrites.widen_bfloat16 import widen_bfloat16_

Rewrite = Callable[[Any], RewriteResult]

# Each edits an onnx_ir.Model in place. The graph still computes the same numbers.
REWRITES: tuple[Rewrite, ...] = (
    name_weights_,
    share_transposed_,
    trivial_masks_,
    static_reshapes_,
    divide_by_root_,
    widen_bfloat16_,
    forget_tracing_,
)


def apply_rewrites_(model: Any, *others: Rewrite) -> tuple[RewriteResult, ...]:
    """Apply REWRITES and the others, then remove unused and duplicate nodes and sort the rest."""
    import onnx_ir.passes.common as passes

    results = tuple(rewrite(model) for rewrite in (*REWRITES, *others))
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return results
