"""Remove the tracer's metadata, mostly stack traces with paths of this machine.

In a small model it is larger than the parameters.
"""

from __future__ import annotations

from typing import Any

from lrcompress.graph.rewrites.rewrite import RewriteResult


def forget_tracing_(model: Any) -> RewriteResult:
    changes = 0
    for node in model.graph.all_nodes():
        changes += bool(node.metadata_props or node.doc_string)
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()
            value.doc_string = None
    for value in (*model.graph.inputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
        value.doc_string = None
    model.graph.metadata_props.clear()
    model.graph.doc_string = None
    model.doc_string = None
    return RewriteResult("forget_tracing", changes)
