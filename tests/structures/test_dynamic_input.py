"""Layers that round their input compute what ONNX Runtime's DynamicQuantizeLinear makes of it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.number_formats import Int8Dynamic
from lrcompress.structures import Dense, Quantised
from lrcompress.structures.dynamic_input import DynamicLinear, round_inputs_, rounded_input
from lrcompress.structures.stored_codes import stored_weights

ROWS, INPUTS, OUTPUTS = 6, 33, 9
EPS32 = 2.0**-24


def drawn(seed: int) -> Tensor:
    return torch.randn(ROWS, INPUTS, generator=torch.Generator().manual_seed(seed))


INPUT: dict[str, Tensor] = {
    "both signs": drawn(0),
    "all positive": drawn(1).abs() + 0.5,
    "all negative": -drawn(2).abs() - 0.5,
    "an outlier": torch.cat([drawn(3)[:-1], torch.full((1, INPUTS), 300.0)]),
    "a negative outlier": torch.cat([drawn(3)[:-1], torch.full((1, INPUTS), -300.0)]),
    "one constant": torch.full((ROWS, INPUTS), 0.7),
    "one negative constant": torch.full((ROWS, INPUTS), -0.7),
    "zeros": torch.zeros(ROWS, INPUTS),
    "a single value": torch.full((1, INPUTS), 3.0),
    "halves": (torch.arange(ROWS * INPUTS) / 2 - 40).reshape(ROWS, INPUTS),  # ties
    "tiny": drawn(4) * 1e-30,
    "huge": drawn(5) * 1e30,
    **{f"seed {seed}": drawn(seed) * 10.0 ** (seed % 5 - 2) + seed % 3 for seed in range(10, 22)},
}
every_input = pytest.mark.parametrize("x", INPUT.values(), ids=INPUT.keys())


def session(weights: npt.NDArray[np.int8]) -> onnxruntime.InferenceSession:
    """x → its codes, their scale and zero point, and their product with int8 weights (k, m)."""
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["codes", "scale", "zero"]),
        helper.make_node("MatMulInteger", ["codes", "weights", "zero"], ["product"]),
    ]
    graph = helper.make_graph(
        nodes,
        "dynamic",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["rows", weights.shape[0]])],
        [
            helper.make_tensor_value_info("codes", TensorProto.UINT8, None),
            helper.make_tensor_value_info("scale", TensorProto.FLOAT, []),
            helper.make_tensor_value_info("zero", TensorProto.UINT8, []),
            helper.make_tensor_value_info("product", TensorProto.INT32, None),
        ],
        [numpy_helper.from_array(weights, "weights")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def layer() -> tuple[nn.Linear, npt.NDArray[np.int8], Tensor]:
    """A layer in int8-dynamic, and its codes (k, m) and scales (m,)."""
    torch.manual_seed(0)
    plain = nn.Linear(INPUTS, OUTPUTS)
    spec = LayerSpec("layer", "linear", OUTPUTS, INPUTS, 1, bias=True)
    structure = Quantised(Dense(), (Int8Dynamic(),))
    factors = structure.fit(plain.weight.detach()[None].double(), Whitening(), spec)
    built = structure.build(plain, spec, factors, plain.bias.detach())
    assert isinstance(built, nn.Linear)
    (stored,) = stored_weights(built)
    assert stored.codes is not None
    codes = (stored.codes.codes.int() - 128).to(torch.int8)
    return built, codes.mT.contiguous().numpy(), stored.codes.grid.scales[:, 0]


@pytest.fixture(scope="module")
def made() -> tuple[nn.Linear, onnxruntime.InferenceSession, Tensor]:
    built, weights, scales = layer()
    return built, session(weights), scales


def run(opened: onnxruntime.InferenceSession, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    codes, scale, zero, product = opened.run(None, {"x": x.numpy()})
    return (
        torch.from_numpy(codes),
        torch.as_tensor(scale),
        torch.as_tensor(zero),
        torch.from_numpy(product),
    )


@every_input
def test_rounded_inputs_are_the_codes_of_onnx_runtime(
    x: Tensor, made: tuple[nn.Linear, onnxruntime.InferenceSession, Tensor]
) -> None:
    """Exactly: a code that differed would be off by a whole step."""
    _, opened, _ = made
    codes, scale, zero, _ = run(opened, x)
    rounded = rounded_input(x)
    assert torch.equal(rounded, (codes.float() - zero.float()) * scale)
    found = (rounded.double() / scale.double()).round() + zero.double()
    assert torch.equal(found, codes.double())


@every_input
def test_the_layer_computes_the_integer_product(
    x: Tensor, made: tuple[nn.Linear, onnxruntime.InferenceSession, Tensor]
) -> None:
    """As exported: an exact sum of integers, times both scales, plus the bias. torch sums the
    dequantised products, each rounded in float32."""
    built, opened, scales = made
    _, scale, _, product = run(opened, x)
    with torch.no_grad():
        out = built(x)
    expected = product.double() * scale.double() * scales.double() + built.bias.detach().double()
    terms = rounded_input(x).double().abs() @ built.weight.detach().double().abs().mT
    slack = (INPUTS + 4) * EPS32 * (terms + built.bias.detach().abs())
    assert bool(((out.double() - expected).abs() <= slack).all())


@every_input
def test_the_layer_multiplies_exactly_the_rounded_input(x: Tensor) -> None:
    built, _, _ = layer()
    expected = nn.functional.linear(rounded_input(x), built.weight, built.bias)
    assert torch.equal(built(x), expected)
    assert torch.equal(built(x.clone().requires_grad_()), expected)


def test_one_grid_serves_the_whole_call() -> None:
    """An outlier in one row coarsens the others: the batch matters, as it does in the graph."""
    x = drawn(0)
    alone = rounded_input(x)
    x[0, 0] = 100.0
    assert not torch.equal(rounded_input(x)[1:], alone[1:])
    assert float((rounded_input(x) - x).abs().max()) <= 0.5 * 103 / 255 * (1 + 300 * EPS32)


@pytest.mark.parametrize("shape", [(0, INPUTS), (2, 0, INPUTS)])
def test_an_empty_batch_gives_an_empty_output(shape: tuple[int, ...]) -> None:
    built, _, _ = layer()
    assert built(torch.zeros(shape)).shape == (*shape[:-1], OUTPUTS)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_are_rounded_on_the_grid_of_float32(dtype: torch.dtype) -> None:
    x = drawn(0).to(dtype)
    assert rounded_input(x).dtype is dtype
    assert torch.equal(rounded_input(x), rounded_input(x.float()).to(dtype))


def test_gradients_ignore_the_rounding() -> None:
    built, _, _ = layer()
    x = drawn(0).requires_grad_()
    built(x).sum().backward()
    expected = built.weight.detach().sum(0).expand(ROWS, INPUTS)
    torch.testing.assert_close(x.grad, expected)


def test_only_plain_linear_layers_are_changed() -> None:
    linear = nn.Linear(3, 2)
    round_inputs_(linear)
    assert type(linear) is DynamicLinear
    with pytest.raises(AssertionError):
        round_inputs_(linear)
