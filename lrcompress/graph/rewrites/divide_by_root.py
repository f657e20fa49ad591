"""Rewrite x * (1 / sqrt(v)) as x / sqrt(v), the form of an RMS norm that ONNX Runtime fuses."""

from __future__ import annotations

from typing import Any

from lrcompress.graph.rewrites.rewrite import RewriteResult


def divide_by_root_(model: Any) -> RewriteResult:
    import onnx_ir as ir

    changes = 0
    for node in list(model.graph.all_nodes()):
        if node.op_type != "Mul":
            continue
        for index, factor in enumerate(node.inputs):
            inverse = factor.producer() if factor is not None else None
            if inverse is None or inverse.op_type != "Reciprocal":
                continue
            root = inverse.inputs[0].producer()
            if root is None or root.op_type != "Sqrt":
                continue
            quotient = ir.node("Div", [node.inputs[1 - index], root.outputs[0]])
            old, new = node.outputs[0], quotient.outputs[0]
            new.dtype, new.shape = old.dtype, old.shape
            new.name, old.name = old.name, f"{old.name}.product"
            node.graph.insert_before(node, quotient)
            old.replace_all_uses_with(new, replace_graph_outputs=True)
            changes += 1
            break
    return RewriteResult("divide_by_root", changes)
