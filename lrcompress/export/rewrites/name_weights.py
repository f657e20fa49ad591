"""Give weights the names that the network knows them by.

The tracer knows a parameter as `module.<name>`, and one that it stored transposed for a MatMul as
`val_76`; they become `<name>` and `<name>.T`.
"""

from __future__ import annotations

import ast
from typing import Any

from lrcompress.export.rewrites.base import RewriteResult

WRAPPER = "module."  # where NamedForward keeps the network
_FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"


def name_weights_(model: Any) -> RewriteResult:
    initializers = model.graph.initializers
    wanted: dict[str, str] = {}
    for old, value in initializers.items():
        new = old.removeprefix(WRAPPER)
        sources = ast.literal_eval(value.metadata_props.get(_FOLDED_FROM, "[]"))
        if len(sources) == 1 and sources[0].startswith(WRAPPER) and _is_matrix(value):
            new = f"{sources[0].removeprefix(WRAPPER)}.T"
        if new != old:
            wanted[old] = new
    taken = set(initializers) | {v.name for n in model.graph for v in (*n.inputs, *n.outputs) if v}
    changes = 0
    for old, new in wanted.items():
        if new in taken:
            continue
        taken.add(new)
        initializers[old].name = new  # the graph's table follows
        changes += 1
    return RewriteResult("name_weights", changes)


def _is_matrix(value: Any) -> bool:
    return value.shape is not None and len(value.shape) == 2
