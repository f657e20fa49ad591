"""Rename weights to the network's names.

The tracer names a parameter `module.<name>`, and one stored transposed for a MatMul `val_76`. They
become `<name>` and `<name>.T`. A parameter with more than two axes that is stored in another order,
or with additional axes of size one, becomes `<name>.reordered`.
"""

from __future__ import annotations

import ast
from typing import Any

import numpy as np

from lrcompress.graph.rewrites.rewrite import RewriteResult

WRAPPER = "module."  # the attribute of NamedForward that holds the network
TRANSPOSED, REORDERED = ".T", ".reordered"
_FOLDED_FROM = "pkg.onnxscript.optimizer.folded_from"


def name_weights_(model: Any) -> RewriteResult:
    initializers = model.graph.initializers
    renamed: dict[str, str] = {}
    for old, value in initializers.items():
        sources = ast.literal_eval(value.metadata_props.get(_FOLDED_FROM, "[]"))
        axes = len(value.shape or ())
        parameters = [source for source in sources if source.startswith(WRAPPER)]
        source, suffix = old, ""
        if axes == 2 and parameters and len(sources) == 1:
            source, suffix = parameters[0], TRANSPOSED
        elif axes > 2 and len(parameters) == 1:  # another source can be the axes of an Unsqueeze
            source, suffix = parameters[0], REORDERED
        new = source.removeprefix(WRAPPER) + suffix
        if new != old and (not suffix or _may_be(value, initializers, source)):
            renamed[old] = new
    taken = set(initializers) | {v.name for n in model.graph for v in (*n.inputs, *n.outputs) if v}
    changes = 0
    for old, new in renamed.items():
        if new not in taken:
            taken.add(new)
            initializers[old].name = new  # this updates the keys of `initializers`
            changes += 1
    return RewriteResult("name_weights", changes)


def _may_be(value: Any, initializers: Any, parameter: str) -> bool:
    """Whether the value may hold the parameter's values; known only if the parameter is stored too.

    The tracer precomputes constants from a single parameter p: 1 - p is not a copy of it.
    """
    if parameter not in initializers:
        return True
    own, theirs = (x.const_value.numpy() for x in (initializers[parameter], value))
    return own.size == theirs.size and bool((np.sort(own, None) == np.sort(theirs, None)).all())


def parameter_name(name: str) -> str:
    """Return the name of the parameter that a stored weight holds, in any order of its axes."""
    return name.removesuffix(TRANSPOSED).removesuffix(REORDERED)
