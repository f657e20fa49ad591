"""Tiny ONNX graphs for tests, in a line or two each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx
from onnx import FunctionProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper

Ports = Mapping[str, tuple[int, Sequence[int | str]]]

FLOAT, FLOAT16, BFLOAT16, INT64, BOOL = (
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.BFLOAT16,
    TensorProto.INT64,
    TensorProto.BOOL,
)


def graph(
    nodes: Sequence[NodeProto],
    inputs: Ports,
    outputs: Ports,
    weights: Mapping[str, np.ndarray] | None = None,
    *,
    opset: int = 20,
    functions: Sequence[FunctionProto] = (),
) -> ModelProto:
    def ports(given: Ports) -> list[onnx.ValueInfoProto]:
        return [
            helper.make_tensor_value_info(name, dtype, list(shape))
            for name, (dtype, shape) in given.items()
        ]

    domains = {node.domain for node in nodes} - {"", "ai.onnx"}
    return helper.make_model(
        helper.make_graph(
            list(nodes),
            "test",
            ports(inputs),
            ports(outputs),
            [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()],
        ),
        opset_imports=[
            helper.make_opsetid("", opset),
            *(helper.make_opsetid(domain, 1) for domain in sorted(domains)),
        ],
        functions=list(functions),
        ir_version=10,
    )


def linear(
    path: Path, out_features: int = 8, in_features: int = 8, *, dtype: type = np.float32
) -> Path:
    """y = x W, x: (batch, sequence, in)."""
    weight = np.random.default_rng(0).standard_normal((in_features, out_features)).astype(dtype)
    kind = FLOAT if dtype == np.float32 else FLOAT16
    model = graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        {"x": (kind, ["batch", "sequence", in_features])},
        {"y": (kind, ["batch", "sequence", out_features])},
        {"w": weight},
    )
    onnx.save(model, path)
    return path


def lookup(path: Path, vocabulary: int, width: int = 4) -> Path:
    """Embeds input_ids and adds attention_mask and token_type_ids, as an encoder's first layer."""
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["rows"], name="embed"),
        helper.make_node("Add", ["attention_mask", "token_type_ids"], ["sum"], name="sum"),
        helper.make_node("Cast", ["sum"], ["scale"], name="cast", to=FLOAT),
        helper.make_node("Unsqueeze", ["scale", "last"], ["column"], name="column"),
        helper.make_node("Mul", ["rows", "column"], ["y"], name="scaled"),
    ]
    table = np.arange(vocabulary * width, dtype=np.float32).reshape(vocabulary, width)
    ids = {
        name: (INT64, ["batch", "sequence"])
        for name in ("input_ids", "attention_mask", "token_type_ids")
    }
    model = graph(
        nodes,
        ids,
        {"y": (FLOAT, ["batch", "sequence", width])},
        {"table": table, "last": np.array([2])},
    )
    onnx.save(model, path)
    return path
