"""An expanded graph computes in floats what ONNX Runtime computes from codes, for any exporter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from lrcompress.graph.expanded import expand_

K, N, ROWS = 40, 24, 50
FLOAT32 = 2e-6 * np.sqrt(K)  # relative to the largest output
RNG = np.random.default_rng(0)
MICROSOFT = "com.microsoft"


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    per_byte = 8 // bits
    codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % per_byte)])
    parts = codes.reshape(*codes.shape[:-1], -1, per_byte).astype(np.uint8)
    return np.bitwise_or.reduce(parts << (bits * np.arange(per_byte, dtype=np.uint8)), axis=-1)


def model(nodes: list, constants: dict, x: tuple[int, list], y: list) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", *x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [
            value if isinstance(value, onnx.TensorProto) else numpy_helper.from_array(value, name)
            for name, value in constants.items()
        ],
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(MICROSOFT, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def product(nodes: list, constants: dict) -> onnx.ModelProto:
    return model(nodes, constants, (TensorProto.FLOAT, ["rows", K]), ["rows", N])


def lookup(nodes: list, constants: dict) -> onnx.ModelProto:
    return model(nodes, constants, (TensorProto.INT64, ["batch", "length"]), ["batch", "length", K])


def both(quantised: onnx.ModelProto, x: np.ndarray) -> tuple[np.ndarray, np.ndarray, list]:
    """The output by ONNX Runtime, that of the expanded graph, and the weights it read in codes."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
    session = onnxruntime.InferenceSession(
        quantised.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    expanded = ir.from_proto(quantised)
    found = expand_(expanded)
    assert all(node.domain == "" for node in expanded.graph)
    kept = ReferenceEvaluator(ir.to_proto(expanded)).run(None, {"x": x})[0]
    return session.run(None, {"x": x})[0], kept, [one.operator for one in found]


def floats() -> np.ndarray:
    return RNG.standard_normal((7, K)).astype(np.float32)


def ids() -> np.ndarray:
    return RNG.integers(0, ROWS, (3, 5))


def close(a: np.ndarray, b: np.ndarray) -> bool:
    return bool(np.abs(a - b).max() <= FLOAT32 * np.abs(b).max())


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("zeros", ["none", "packed", "floats"])
def test_matmul_nbits(bits, zeros):
    blocks = -(-K // 16)
    codes = RNG.integers(0, 1 << bits, (N, blocks, 16))
    constants = {
        "w.codes": packed(codes, bits),
        "scales": RNG.standard_normal((N, blocks)).astype(np.float32),
        "bias": RNG.standard_normal(N).astype(np.float32),
    }
    if zeros == "packed":
        constants["zeros"] = packed(RNG.integers(0, 1 << bits, (N, blocks)), bits)
    elif zeros == "floats":
        if bits != 4:
            pytest.skip("ONNX Runtime takes floats as zero points of 4 bits")
        constants["zeros"] = RNG.uniform(0, 15, (N, blocks)).astype(np.float32)
    inputs = ["x", "w.codes", "scales", "zeros" if zeros != "none" else "", "", "bias"]
    given = {"K": K, "N": N, "bits": bits, "block_size": 16, "accuracy_level": 1}
    node = helper.make_node("MatMulNBits", inputs, ["y"], domain=MICROSOFT, **given)
    got, expanded, found = both(product([node], constants), floats())
    assert found == ["MatMulNBits"]
    assert close(expanded, got)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("with_zeros", [True, False])
def test_gather_block_quantized(bits, with_zeros):
    blocks = -(-K // 16)
    constants = {
        "w.codes": packed(RNG.integers(0, 1 << bits, (ROWS, K)), bits),
        "scales": RNG.standard_normal((ROWS, blocks)).astype(np.float32),
    }
    if with_zeros:
        constants["zeros"] = packed(RNG.integers(0, 1 << bits, (ROWS, blocks)), bits)
    node = helper.make_node(
        "GatherBlockQuantized", ["w.codes", "x", "scales", *["zeros"] * with_zeros], ["y"],
        domain=MICROSOFT, gather_axis=0, quantize_axis=1, block_size=16, bits=bits,
    )  # fmt: skip
    got, expanded, found = both(lookup([node], constants), ids())
    assert found == ["GatherBlockQuantized"]
    assert np.array_equal(expanded, got)


def integers(name: str, values: np.ndarray, dtype: int) -> onnx.TensorProto:
    return helper.make_tensor(name, dtype, values.shape, values.flatten().tolist())


@pytest.mark.parametrize("axis", [0, 1])
def test_dequantize_linear_of_blocks(axis):
    shape = (K, N) if axis == 0 else (N, K)
    blocks = [size if i != axis else -(-size // 16) for i, size in enumerate(shape)]
    constants = {
        "w.codes": integers("w.codes", RNG.integers(-8, 8, shape), TensorProto.INT4),
        "scales": RNG.standard_normal(blocks).astype(np.float16),
        "zeros": integers("zeros", RNG.integers(-8, 8, blocks), TensorProto.INT4),
    }
    nodes = [
        helper.make_node("Cast", ["scales"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node(
            "DequantizeLinear", ["w.codes", "wide", "zeros"], ["w"], axis=axis, block_size=16
        ),
    ]
    if axis == 1:
        nodes.append(helper.make_node("Transpose", ["w"], ["turned"], perm=[1, 0]))
    nodes.append(helper.make_node("MatMul", ["x", "w" if axis == 0 else "turned"], ["y"]))
    quantised = product(nodes, constants)
    got, expanded, found = both(quantised, floats())
    assert found == ["DequantizeLinear"]
    assert close(expanded, got)
    (read,) = expand_(ir.from_proto(quantised))
    assert read.unfused  # as no session has fused it: such a graph is dequantised in every run


def test_the_other_side_of_a_product_has_no_kernel():
    constants = {
        "w.codes": integers("w.codes", RNG.integers(-8, 8, (K, N)), TensorProto.INT4),
        "scales": RNG.standard_normal((K, 2)).astype(np.float32),
    }
    nodes = [  # blocks along the outputs, not along the sum
        helper.make_node("DequantizeLinear", ["w.codes", "scales"], ["w"], axis=1, block_size=16),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
    ]
    (read,) = expand_(ir.from_proto(product(nodes, constants)))
    assert not read.unfused


def test_inputs_rounded_at_run_time_are_rounded_no_more(tmp_path):
    weight = RNG.standard_normal((K, N)).astype(np.float32)
    plain = product([helper.make_node("MatMul", ["x", "w"], ["y"])], {"w": weight})
    quantised = by_onnxruntime(plain, tmp_path)
    assert "MatMulInteger" in [node.op_type for node in quantised.graph.node]
    x = floats()
    got, expanded, found = both(quantised, x)
    assert found == ["MatMulInteger"]
    # codes of columns: half a step of the largest weight in each of K terms
    step = np.abs(weight).max(0) / 127
    assert np.all(np.abs(expanded - x @ weight) <= np.abs(x).sum(-1, keepdims=True) * step)
    # ONNX Runtime rounds x too, by at most half a step, in each of K terms
    step_x = (max(x.max(), 0) - min(x.min(), 0)) / 255
    assert np.all(np.abs(expanded - got) <= step_x * np.abs(weight).sum(0) * 1.1)
    assert not np.allclose(expanded, got, atol=1e-4)


def by_onnxruntime(plain: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    quantization = pytest.importorskip("onnxruntime.quantization")
    onnx.save(plain, folder / "plain.onnx")
    quantization.quantize_dynamic(
        folder / "plain.onnx",
        folder / "quantised.onnx",
        per_channel=True,
        weight_type=quantization.QuantType.QInt8,
    )
    return onnx.load(folder / "quantised.onnx")


def test_a_table_by_onnxruntime(tmp_path):
    table = RNG.standard_normal((ROWS, K)).astype(np.float32)
    plain = lookup([helper.make_node("Gather", ["w", "x"], ["y"])], {"w": table})
    quantised = by_onnxruntime(plain, tmp_path)
    got, expanded, found = both(quantised, ids())
    assert found == ["Gather"]
    assert np.array_equal(expanded, got)


def test_codes_are_read_when_they_are_needed():
    constants = {
        "w.codes": integers("w.codes", RNG.integers(-8, 8, (K, N)), TensorProto.INT4),
        "scales": np.ones((3, N), np.float32),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w.codes", "scales"], ["v"], axis=0, block_size=16),
        helper.make_node("MatMul", ["x", "v"], ["y"]),
    ]
    expanded = ir.from_proto(product(nodes, constants))
    (read,) = expand_(expanded)
    value = expanded.graph.initializers[read.name].const_value
    assert read.name == "w.T"  # the name of the codes without their suffix
    assert isinstance(value, ir.LazyTensor)
    assert value.numpy().shape == (K, N)
    assert [node.op_type for node in expanded.graph] == ["MatMul"]


def test_a_plain_graph_stays_as_it_is():
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"])]
    plain = product(nodes, {"w": RNG.standard_normal((K, N)).astype(np.float32)})
    graph = ir.from_proto(plain)
    assert expand_(graph) == ()
    assert [node.op_type for node in graph.graph] == ["MatMul"]
    assert list(graph.graph.initializers) == ["w"]


def test_a_product_with_another_inputs_zero_point_is_left_alone():
    constants = {
        "w": RNG.integers(-127, 128, (K, N)).astype(np.int8),
        "scales": np.ones(N, np.float32),
        "zero": np.uint8(3).reshape(()),
    }
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "step", "own_zero"]),
        helper.make_node("MatMulInteger", ["codes", "w", "zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["step", "scales"], ["both"]),
        helper.make_node("Mul", ["wide", "both"], ["y"]),
    ]
    assert expand_(ir.from_proto(product(nodes, constants))) == ()
