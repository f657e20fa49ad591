"""Which nodes would find no CUDA kernel: told on a machine that has no GPU."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import BFLOAT16, BOOL, FLOAT, FLOAT16, INT64, graph
from hypothesis import given
from hypothesis import strategies as st
from onnx import ModelProto, NodeProto, TensorProto, helper

from benchmarks.make_kernel_table import (
    TABLE,
    Kernel,
    compile_stand_ins,
    facts_from_document,
    main,
    merged,
)
from lrcompress.errors import ModelError
from lrcompress.graph.kernels import kernel_table, missing_kernels, parse_table

SAMPLE_DOCUMENT = """
# Kernels
## Operators implemented by CPUExecutionProvider

| Op Name | Parameters | OpSet Version | Types Supported |
|---------|------------|---------------|-----------------|
|**Operator Domain:** *ai.onnx*||||
|Tan|*in* input:**T**<br> *out* output:**T**|7+|**T** = tensor(float)|
|Sum|*in* x:**T**<br> *out* y:**T**|13+|**T** = tensor(float)|

## Operators implemented by CUDAExecutionProvider

| Op Name | Parameters | OpSet Version | Types Supported |
|---------|------------|---------------|-----------------|
|**Operator Domain:** *ai.onnx*||||
|Sum|*in* x:**T**<br> *out* y:**T**|13+|**T** = tensor(float), tensor(float16)|
|||[8, 12]|**T** = tensor(float)|
|||7|**T** = tensor(float)|
|Pick|*in* s:**S**<br> *in* at:**I**<br> *out* y:**T**|11+|**I** = tensor(int64)<br/> **S** = seq(tensor(float))|
|**Operator Domain:** *com.microsoft*||||
|FastSum|*in* X:**T**<br> *in* bias:**T**<br> *out* Y:**T**<br><br>or<br><br>*in* X:**T**<br> *out* Y:**T**|1+|**T** = tensor(float16)|
"""  # noqa: E501


def one(operator: str, dtype: int, *, opset: int = 20, inputs: int = 1, **kw: object) -> ModelProto:
    names = [f"x{index}" for index in range(inputs)]
    return graph(
        [helper.make_node(operator, names, ["y"], name="node", **kw)],
        {name: (dtype, ["batch", 4]) for name in names},
        {"y": (dtype, ["batch", 4])},
        opset=opset,
    )


def operators(model: ModelProto, dtype: str = "fp32") -> list[str]:
    return [missing.operator for missing in missing_kernels(model, dtype)]


@pytest.mark.parametrize("dtype", [FLOAT, FLOAT16, BFLOAT16])
@pytest.mark.parametrize("operator", ["MatMul", "Gemm", "Mul"])
def test_what_factored_layers_are_made_of_has_a_kernel_in_every_precision(
    operator: str, dtype: int
) -> None:
    assert operators(one(operator, dtype, inputs=2)) == []


def test_dtype_decides() -> None:
    """Einsum has kernels for float and half precision, and none for bfloat16."""
    for dtype, expected in ((FLOAT, []), (FLOAT16, []), (BFLOAT16, ["Einsum"])):
        assert operators(one("Einsum", dtype, inputs=2, equation="bi,bi->bi")) == expected


def test_operator_without_any_kernel_is_named_with_its_node() -> None:
    (missing,) = missing_kernels(one("Tan", FLOAT), "fp32")
    assert (missing.node, missing.operator, missing.dtypes) == ("node", "Tan", ("float",))
    assert "node" in str(missing)
    assert "no CUDA kernel" in str(missing)


def test_version_decides() -> None:
    """bfloat16 came to Conv with version 22 of the operator."""
    for opset, expected in ((20, ["Conv"]), (23, [])):
        model = graph(
            [helper.make_node("Conv", ["x", "w"], ["y"], name="conv")],
            {"x": (BFLOAT16, ["b", 3, 8, 8]), "w": (BFLOAT16, [4, 3, 1, 1])},
            {"y": (BFLOAT16, ["b", 4, 8, 8])},
            opset=opset,
        )
        assert operators(model) == expected


def test_open_ended_kernel_serves_its_own_version_only() -> None:
    table = parse_table(
        json.dumps(
            {
                "source": "test",
                "kernels": {"": {"Sum": [[13, None, {"T": "float"}], [6, 12, {"T": "float"}]]}},
                "cpu_only": {},
                "signatures": {},
            }
        )
    )
    newest, older = table.kernels[("", "Sum")]
    assert [newest.takes(version, {}) for version in (12, 13, 14)] == [False, True, False]
    assert [older.takes(version, {}) for version in (5, 6, 8, 12, 13)] == [0, 1, 1, 1, 0]


def test_shape_arithmetic_is_allowed_where_the_same_operator_on_data_is_not() -> None:
    """ReduceProd of int64 has no CUDA kernel; the number of elements may still be computed."""
    shape = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("ReduceProd", ["shape"], ["count"], name="count", keepdims=1),
        helper.make_node("Reshape", ["x", "count"], ["y"], name="flat"),
    ]
    x = {"x": (FLOAT, ["batch", 4])}
    assert operators(graph(shape, x, {"y": (FLOAT, ["n"])})) == []
    data = [helper.make_node("ReduceProd", ["x"], ["y"], name="count", keepdims=0)]
    assert operators(graph(data, {"x": (INT64, ["n"])}, {"y": (INT64, [])})) == ["ReduceProd"]


def test_node_of_a_subgraph_is_found() -> None:
    def branch(operator: str) -> onnx.GraphProto:
        return helper.make_graph(
            [helper.make_node(operator, ["x"], [f"{operator}_y"], name=f"in_{operator}")],
            operator,
            [],
            [helper.make_tensor_value_info(f"{operator}_y", FLOAT, ["batch", 4])],
        )

    node = helper.make_node(
        "If", ["c"], ["y"], name="if", then_branch=branch("Tan"), else_branch=branch("Relu")
    )
    model = graph(
        [node], {"x": (FLOAT, ["batch", 4]), "c": (BOOL, [])}, {"y": (FLOAT, ["batch", 4])}
    )
    assert [missing.node for missing in missing_kernels(model, "fp32")] == ["in_Tan"]


def test_node_of_a_model_function_is_found() -> None:
    function = helper.make_function(
        "own",
        "TwiceTan",
        ["a"],
        ["b"],
        [
            helper.make_node("Tan", ["a"], ["t"], name="tan"),
            helper.make_node("Add", ["t", "t"], ["b"], name="add"),
        ],
        [helper.make_opsetid("", 20)],
    )
    model = graph(
        [helper.make_node("TwiceTan", ["x"], ["y"], domain="own", name="call")],
        {"x": (FLOAT, ["batch", 4])},
        {"y": (FLOAT, ["batch", 4])},
        functions=[function],
    )
    assert operators(model) == ["Tan"]


def test_operator_that_onnx_runtime_writes_out_is_judged_by_its_definition() -> None:
    """GroupNormalization and Mish have no kernel anywhere; their definitions run on CUDA. Celu
    has one on the CPU, which ONNX Runtime prefers to its definition."""
    assert operators(one("Mish", FLOAT16)) == []
    group = graph(
        [helper.make_node("GroupNormalization", ["x", "s", "b"], ["y"], num_groups=2)],
        {"x": (FLOAT16, ["batch", 4, 8]), "s": (FLOAT16, [4]), "b": (FLOAT16, [4])},
        {"y": (FLOAT16, ["batch", 4, 8])},
        opset=21,
    )
    assert operators(group) == []
    assert operators(one("Celu", FLOAT)) == ["Celu"]


def test_attribute_that_the_provider_declines_is_found() -> None:
    def last_index(value: int) -> ModelProto:
        node = helper.make_node("ArgMax", ["x"], ["y"], name="best", select_last_index=value)
        return graph([node], {"x": (FLOAT, ["b", 4])}, {"y": (INT64, [1, 4])})

    assert operators(last_index(0)) == []
    assert operators(last_index(1)) == ["ArgMax"]


def test_given_dtype_stands_in_behind_an_operator_that_onnx_does_not_know() -> None:
    """What com.microsoft::FastGelu gives, type inference cannot tell; Einsum then takes `dtype`."""
    nodes = [
        helper.make_node("FastGelu", ["x"], ["g"], domain="com.microsoft", name="gelu"),
        helper.make_node("Einsum", ["g"], ["y"], name="sum", equation="bi->b"),
    ]
    model = graph(nodes, {"x": (BFLOAT16, ["b", 4])}, {"y": (BFLOAT16, ["b"])})
    assert operators(model, "bf16") == ["Einsum"]


def test_large_and_external_weights_are_not_read() -> None:
    model = one("MatMul", FLOAT, inputs=2)
    big = TensorProto(name="x1", data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    big.dims.extend([4, 2**30])  # 16 GB, of a file that does not exist
    big.external_data.add(key="location", value="nowhere.data")
    del model.graph.input[1]
    model.graph.initializer.append(big)
    assert operators(model) == []


def test_graph_that_does_not_fit_together_is_a_one_line_error() -> None:
    """A function that calls itself can never be written out."""
    call = helper.make_node("Loop", ["a"], ["b"], domain="own")
    function = helper.make_function("own", "Loop", ["a"], ["b"], [call], [])
    model = graph([call], {"a": (FLOAT, [1])}, {"b": (FLOAT, [1])}, functions=[function])
    with pytest.raises(ModelError, match="ONNX checker") as caught:
        missing_kernels(model, "fp32")
    assert "\n" not in str(caught.value)


def test_unknown_dtype_is_refused() -> None:
    with pytest.raises(ModelError, match="int8"):
        missing_kernels(one("Relu", FLOAT), "int8")


def test_checked_in_table_names_the_version_it_describes() -> None:
    table = kernel_table()
    assert "ONNX Runtime 1." in table.source
    assert len(table.kernels) > 200
    assert ("", "Tan") in table.cpu_only
    assert not table.cpu_only & table.kernels.keys()


def test_document_is_read() -> None:
    facts = facts_from_document(SAMPLE_DOCUMENT)
    assert facts.kernels == [
        Kernel("", "Sum", 13, None, (("T", ("float", "float16")),)),
        Kernel("", "Sum", 8, 12, (("T", ("float",)),)),
        Kernel("", "Sum", 7, 7, (("T", ("float",)),)),
        Kernel("", "Pick", 11, None, (("I", ("int64",)), ("S", ("seq(float)",)))),
        Kernel("com.microsoft", "FastSum", 1, None, (("T", ("float16",)),)),
    ]
    assert facts.on_cpu == {("", "Tan"), ("", "Sum")}
    assert facts.signatures[("com.microsoft", "FastSum")].inputs == ("T", "T")


def test_table_made_from_a_document_reads_back(tmp_path: Path) -> None:
    document, output = tmp_path / "OperatorKernels.md", tmp_path / "table.json"
    document.write_text(SAMPLE_DOCUMENT, encoding="utf-8")
    main(["--document", str(document), "--source", "1.0", "--output", str(output)])
    table = parse_table(output.read_text(encoding="utf-8"))
    assert table.cpu_only == {("", "Tan")}
    assert [k.takes(13, {"T": frozenset({"float16"})}) for k in table.kernels[("", "Sum")]] == [
        True,
        False,
        False,
    ]
    assert table.signatures[("com.microsoft", "FastSum")] == (("T", "T"), ("T",))


DTYPE = st.sampled_from(("float", "float16", "int64"))
KERNEL = st.builds(
    lambda opset, t, u: Kernel("", "Op", opset, None, (("T", (t,)), ("U", (u,)))),
    st.sampled_from((1, 13)),
    DTYPE,
    DTYPE,
)


@given(st.lists(KERNEL, max_size=12))
def test_merging_kernels_neither_adds_nor_loses_a_combination(kernels: list[Kernel]) -> None:
    def combinations(listed: list[Kernel]) -> set[tuple[int, tuple[str, ...]]]:
        return {
            (kernel.first_opset, dtypes)
            for kernel in listed
            for dtypes in itertools.product(*(allowed for _, allowed in kernel.types))
        }

    assert combinations(merged(kernels)) == combinations(kernels)
    assert len(merged(kernels)) <= len(set(kernels))


needs_compiler = pytest.mark.skipif(
    sys.platform != "linux"
    or not all(shutil.which(tool) for tool in ("gcc", "nm", "readelf"))
    or kernel_table().source.split()[5] != pytest.importorskip("onnxruntime").__version__,
    reason="needs gcc, binutils and the ONNX Runtime of the table",
)


@pytest.mark.slow
@needs_compiler
def test_checked_in_table_is_what_the_installed_build_says(tmp_path: Path) -> None:
    main(["--installed", "--stand-ins", "--output", str(tmp_path / "table.json")])
    assert (tmp_path / "table.json").read_text() == TABLE.read_text()


_PLACE = """
import json, sys
from lrcompress.export.placement import placement
from lrcompress.export.session import open_session
path, optimized = sys.argv[1:]
session = open_session(path, "cuda", record_assignment=True, optimized_path=optimized)
off = placement(session).compute_nodes_off("cuda")
sys.stdout.write("\\n" + json.dumps(sorted(node.operator for node in off)))
"""


def _shape_and(node: NodeProto, dtype: int) -> ModelProto:
    nodes = [
        helper.make_node("Shape", ["x"], ["shape"], name="shape"),
        helper.make_node("Gather", ["shape", "first"], ["size"], name="size"),
        helper.make_node("Concat", ["size", "rest"], ["target"], name="target", axis=0),
        helper.make_node("Reshape", ["x", "target"], ["row"], name="row"),
        node,
    ]
    weights = {"first": np.array([0]), "rest": np.array([-1])}
    return graph(nodes, {"x": (dtype, ["batch", 2, 2])}, {"y": (dtype, ["b", "n"])}, weights)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("operator", "dtype", "keywords"),
    [
        ("Relu", FLOAT16, {}),
        ("Tan", FLOAT, {}),
        ("Mish", FLOAT16, {}),
        ("Celu", FLOAT, {}),
        ("Softmax", FLOAT, {"axis": -1}),
    ],
)
def test_table_agrees_with_onnx_runtimes_own_placement(
    tmp_path: Path, operator: str, dtype: int, keywords: dict[str, int]
) -> None:
    """A session on the CUDA provider opens over libraries that compute nothing; where it puts
    each node is real. Shape nodes that it leaves to the CPU must not be reported."""
    model = _shape_and(helper.make_node(operator, ["row"], ["y"], name="node", **keywords), dtype)
    path = tmp_path / "model.onnx"
    onnx.save(model, path)
    compile_stand_ins(tmp_path)
    placed = subprocess.run(
        [sys.executable, "-c", _PLACE, str(path), str(tmp_path / "optimized.onnx")],
        env={**os.environ, "LD_LIBRARY_PATH": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(placed.stdout.splitlines()[-1]) == operators(model)
