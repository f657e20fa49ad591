"""Infer the dtype of every value of an ONNX graph, and which nodes only compute shapes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod

import onnx.checker
import onnx.helper
import onnx.inliner
import onnx.shape_inference
from onnx import AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, TypeProto

from lrcompress.errors import ModelError
from lrcompress.messages import one_line

# Operators from which exporters build shapes, indices and masks. A node of another operator, or
# one of these with inputs other than shapes and constants, is the network's own arithmetic.
# fmt: off
SHAPE_OPERATORS = frozenset((
    "Shape", "Size", "Constant", "ConstantOfShape", "Identity", "Cast", "Gather", "GatherElements",
    "Slice", "Concat", "Split", "Squeeze", "Unsqueeze", "Reshape", "Flatten", "Transpose", "Expand",
    "Tile", "Range", "Add", "Sub", "Mul", "Div", "Mod", "Neg", "Abs", "Min", "Max", "Pow", "Sqrt",
    "Reciprocal", "Floor", "Ceil", "Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual",
    "And", "Or", "Xor", "Not", "Where", "ReduceProd", "ReduceSum", "ReduceMax", "ReduceMin",
    "CumSum", "ScatterND", "Trilu", "BitShift", "BitwiseAnd",
))
_INTEGERS = frozenset((
    "bool", "int4", "int8", "int16", "int32", "int64",
    "uint4", "uint8", "uint16", "uint32", "uint64",
))
# fmt: on
_INLINE_BYTES = 64 * 1024  # larger constants are not shapes: inference does not need their values


@dataclass(frozen=True)
class ValueType:
    dtype: str  # `float16`, `int64`, `seq(float)`
    elements: int | None  # None if a dimension is unknown before the run


@dataclass(frozen=True, eq=False)
class TypedNode:
    node: NodeProto
    inputs: tuple[ValueType | None, ...]  # None: absent, or not inferred
    outputs: tuple[ValueType | None, ...]
    computes_shape: bool  # computes integers or a single number from only shapes and constants


def typed_nodes(
    model: ModelProto, *, expand: Callable[[NodeProto], bool] | None = None
) -> list[TypedNode]:
    """Return every node of the graph and its subgraphs, with the model's own functions inlined.

    expand: which nodes to replace by their operator's definition in the ONNX standard.

    Raises:
        ModelError: the types of the graph cannot be inferred.
    """
    try:
        return list(_walk(_inferred(_without_weights(model), expand).graph, {}, set(), set()))
    except (
        RuntimeError,
        ValueError,
        onnx.checker.ValidationError,
        onnx.shape_inference.InferenceError,
    ) as error:
        raise ModelError(
            f"graph {model.graph.name}: its types cannot be inferred: {one_line(error)}; "
            "run the ONNX checker on it"
        ) from error


def _inferred(light: ModelProto, expand: Callable[[NodeProto], bool] | None) -> ModelProto:
    if light.functions:
        light = onnx.inliner.inline_local_functions(light)
    # A definition may use operators that must be expanded too.
    while expand and (chosen := {_operator(n) for n in _all_nodes(light.graph) if expand(n)}):
        light = onnx.inliner.inline_selected_functions(
            light, sorted(chosen), inline_schema_functions=True
        )
        if chosen & {_operator(n) for n in _all_nodes(light.graph)}:
            break  # some definitions cannot be inlined
    inferred: ModelProto = onnx.shape_inference.infer_shapes(light)
    return inferred


def _walk(
    graph: GraphProto, outer: Mapping[str, ValueType], shapes: set[str], constants: set[str]
) -> Iterator[TypedNode]:
    types = {**outer, **_declared_types(graph)}
    shapes, constants = set(shapes), constants | {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        inputs = tuple(types.get(name) if name else None for name in node.input)
        outputs = tuple(types.get(name) if name else None for name in node.output)
        computes_shape = _computes_shape(node, types, shapes, constants)
        if computes_shape:
            shapes.update(node.output)
        if node.op_type == "Constant":
            constants.update(node.output)
        yield TypedNode(node, inputs, outputs, computes_shape)
        for subgraph in _subgraphs(node):
            yield from _walk(subgraph, types, shapes, constants)


def _computes_shape(
    node: NodeProto, types: Mapping[str, ValueType], shapes: set[str], constants: set[str]
) -> bool:
    if node.domain or node.op_type not in SHAPE_OPERATORS:
        return False
    if node.op_type in ("Shape", "Size"):
        return True
    known = {name for name in node.input if name}
    if not known <= shapes | constants:
        return False
    return all(_is_shape_like(types.get(name)) for name in [*known, *node.output] if name)


def _is_shape_like(value: ValueType | None) -> bool:
    # A scale such as 1/sqrt(head size) is a single floating-point number computed from a shape.
    return value is not None and (value.dtype in _INTEGERS or value.elements == 1)


def _operator(node: NodeProto) -> tuple[str, str]:
    return node.domain, node.op_type


def _all_nodes(graph: GraphProto) -> Iterator[NodeProto]:
    for node in graph.node:
        yield node
        for subgraph in _subgraphs(node):
            yield from _all_nodes(subgraph)


def _subgraphs(node: NodeProto) -> Iterator[GraphProto]:
    for attribute in node.attribute:
        if attribute.type == AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == AttributeProto.GRAPHS:
            yield from attribute.graphs


def _declared_types(graph: GraphProto) -> dict[str, ValueType]:
    types = {
        tensor.name: ValueType(dtype_name(tensor.data_type), prod(tensor.dims))
        for tensor in graph.initializer
    }
    for value in (*graph.input, *graph.value_info, *graph.output):
        if (found := _value_type(value.type)) is not None:
            types[value.name] = found
    return types


def _value_type(declared: TypeProto) -> ValueType | None:
    if declared.HasField("sequence_type"):
        inner = _value_type(declared.sequence_type.elem_type)
        return None if inner is None else ValueType(f"seq({inner.dtype})", None)
    tensor = declared.tensor_type
    if not declared.HasField("tensor_type") or tensor.elem_type == TensorProto.UNDEFINED:
        return None
    dims = tensor.shape.dim
    static = tensor.HasField("shape") and all(dim.HasField("dim_value") for dim in dims)
    return ValueType(
        dtype_name(tensor.elem_type), prod(dim.dim_value for dim in dims) if static else None
    )


def dtype_name(element_type: int) -> str:
    """Return ONNX Runtime's name of a dtype: `float`, `float16`, `bfloat16`, `int64`, ..."""
    name: str = onnx.helper.tensor_dtype_to_string(element_type)  # `TensorProto.FLOAT16`
    return name.removeprefix("TensorProto.").lower()


def _without_weights(model: ModelProto) -> ModelProto:
    """Return the graph with only the name, dtype and dims of large initializers.

    Inference copies the model through protobuf. So it works above 2 GB, and is cheap below.
    """
    light = ModelProto(ir_version=model.ir_version)
    light.opset_import.extend(model.opset_import)
    light.functions.extend(model.functions)
    graph = light.graph
    graph.name = model.graph.name
    for field in ("node", "input", "output", "value_info"):
        getattr(graph, field).extend(getattr(model.graph, field))
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL and tensor.ByteSize() <= _INLINE_BYTES:
            graph.initializer.append(tensor)
            continue
        placeholder = graph.initializer.add(
            name=tensor.name, data_type=tensor.data_type, data_location=TensorProto.EXTERNAL
        )
        placeholder.dims.extend(tensor.dims)
        placeholder.external_data.add(key="location", value="left_out")
    return light
