"""The interface of a rewrite, which edits a graph in place and reports its changes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class RewriteResult:
    name: str
    changes: int  # nodes or initializers that were edited
    note: str = ""  # for the user

    @property
    def changed(self) -> bool:
        return self.changes > 0


class Rewrite(Protocol):
    """A function that edits an onnx_ir.Model. The graph still computes the same numbers."""

    def __call__(self, model: Any, /) -> RewriteResult: ...


def apply_rewrites_(model: Any, rewrites: Iterable[Rewrite]) -> tuple[RewriteResult, ...]:
    """Apply the rewrites in order, then remove unused and duplicate nodes and sort the rest."""
    import onnx_ir.passes.common as passes

    results = tuple(rewrite(model) for rewrite in rewrites)
    passes.RemoveUnusedNodesPass()(model)
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    passes.CommonSubexpressionEliminationPass()(model)
    passes.RemoveUnusedNodesPass()(model)
    passes.TopologicalSortPass()(model)
    return results
