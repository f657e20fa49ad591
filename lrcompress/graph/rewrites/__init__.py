"""Rewrites of an exported graph, one per module, applied in the order of REWRITES."""

from __future__ import annotations

from lrcompress.graph.rewrites.divide_by_root import divide_by_root_
from lrcompress.graph.rewrites.forget_tracing import forget_tracing_
from lrcompress.graph.rewrites.name_weights import name_weights_
from lrcompress.graph.rewrites.rewrite import Rewrite, RewriteResult, apply_rewrites_
from lrcompress.graph.rewrites.share_transposed import share_transposed_
from lrcompress.graph.rewrites.static_reshapes import static_reshapes_
from lrcompress.graph.rewrites.trivial_masks import trivial_masks_
from lrcompress.graph.rewrites.widen_bfloat16 import widen_bfloat16_

REWRITES: tuple[Rewrite, ...] = (
    name_weights_,
    share_transposed_,
    trivial_masks_,
    static_reshapes_,
    divide_by_root_,
    widen_bfloat16_,
    forget_tracing_,
)

__all__ = ["REWRITES", "Rewrite", "RewriteResult", "apply_rewrites_"]
