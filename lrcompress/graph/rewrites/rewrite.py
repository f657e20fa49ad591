"""The contract of a rewrite: it edits a graph in place and says what it changed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class RewriteResult:
    name: str
    changes: int  # nodes or initializers that were edited
    note: str = ""  # what the user should know of it

    @property
    def changed(self) -> bool:
        return self.changes > 0


class Rewrite(Protocol):
    """A function of an onnx_ir.Model. The graph computes the same numbers before and after."""

    def __call__(self, model: Any, /) -> RewriteResult: ...


def apply_rewrites_(model: Any, rewrites: Iterable[Rewrite]) -> tuple[RewriteResult, ...]:
    """Apply them in order; then drop what nothing uses and sort the nodes."""
    import onnx_ir.passes.common as passes

    results = tuple(rewrite(model) for rewrite in rewrites)
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return results
