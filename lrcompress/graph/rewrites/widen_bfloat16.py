"""Run operators without a bfloat16 kernel in float32.

These are convolutions before opset 22, norms and pooling of image networks, and interpolation.
Their weights are stored in bfloat16; ONNX Runtime converts them once, when it opens the file.
Activations between two such operators stay float32.
"""

from __future__ import annotations

from typing import Any

from lrcompress.graph.rewrites.rewrite import RewriteResult


def widen_bfloat16_(model: Any) -> RewriteResult:
    widened: dict[tuple[Any, Any], Any] = {}  # graph and bfloat16 value -> float32 value
    chosen = [node for node in model.graph.all_nodes() if _lacks_kernel(node, model)]
    for node in chosen:
        _widen_(node, widened)
    note = ""
    if chosen:
        operators = ", ".join(sorted({node.op_type for node in chosen}))
        note = f"in float32, as there is no bfloat16 kernel at opset {model.opset_imports['']}: "
        note += f"{operators} ({len(chosen)} nodes); their weights are stored in bfloat16"
    return RewriteResult("widen_bfloat16", len(chosen), note)


def _widen_(node: Any, widened: dict[tuple[Any, Any], Any]) -> None:
    import onnx_ir as ir

    for index, value in enumerate(node.inputs):
        if value is None or value.dtype != ir.DataType.BFLOAT16:
            continue
        if (node.graph, value) not in widened:
            cast = _cast(value, ir.DataType.FLOAT, f"{value.name}.float32")
            node.graph.insert_before(node, cast)
            widened[node.graph, value] = cast.outputs[0]
        node.replace_input_with(index, widened[node.graph, value])
    for value in node.outputs:
        # Untyped outputs are bfloat16 too: the chosen operators return the dtype of their inputs
        if value.dtype not in (ir.DataType.BFLOAT16, None):
            continue
        name = value.name
        value.name, value.dtype = f"{name}.float32", ir.DataType.FLOAT
        cast = _cast(value, ir.DataType.BFLOAT16, name)
        value.replace_all_uses_with(cast.outputs[0], replace_graph_outputs=True)
        cast.replace_input_with(0, value)
        node.graph.insert_after(node, cast)
        widened[node.graph, cast.outputs[0]] = value


def _cast(value: Any, dtype: Any, name: str) -> Any:
    import onnx_ir as ir

    cast = ir.node("Cast", [value], {"to": int(dtype)}, name=f"{name}.cast")
    result = cast.outputs[0]
    result.name, result.dtype, result.shape = name, dtype, value.shape
    return cast


def _lacks_kernel(node: Any, model: Any) -> bool:
    """Whether the CUDA provider can run the node in float32 but not in bfloat16."""
    import onnx_ir as ir

    from lrcompress.graph.kernels import why_missing
    from lrcompress.graph.typed_graph import TypedNode, ValueType, dtype_name

    if not any(v is not None and v.dtype == ir.DataType.BFLOAT16 for v in node.inputs):
        return False
    proto, opset = ir.to_proto(node), model.opset_imports.get(node.domain, 1)

    def missing_in(dtype: str) -> bool:  # in place of bfloat16
        def type_of(value: Any) -> ValueType | None:
            if value is None or value.dtype is None:
                return None
            name = dtype_name(value.dtype)
            return ValueType(dtype if name == "bfloat16" else name, None)

        inputs, outputs = (tuple(map(type_of, side)) for side in (node.inputs, node.outputs))
        typed = TypedNode(proto, inputs, outputs, computes_shape=False)
        return why_missing(typed, opset, dtype) is not None

    return missing_in("bfloat16") and not missing_in("float")
