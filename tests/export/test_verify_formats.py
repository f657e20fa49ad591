"""The checks of weights in number formats find real faults, and rounding is no fault."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from stored_network import store_
from torch import nn
from verified_networks import network, tokens

from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.precision import plain_copy
from lrcompress.export.verify.activation_rounding import rounded_by_blocks
from lrcompress.export.verify.integer_check import product_error
from lrcompress.export.verify.parity import ParityResult
from lrcompress.export.verify.parity_check import why_unknown
from lrcompress.export.verify.tensor_matching import Difference
from lrcompress.export.verify.verify import VerifyOptions, verify
from lrcompress.structures.dynamic_input import rounded_input

LINEAR = ("query", "key", "value", "up", "down", "head")
FLOAT32 = "parity with products in float32"


def stored(text: str) -> nn.Module:
    module = network(None)
    for name in LINEAR:
        store_(module, f"{name}.weight", text)
    store_(module, "embed.weight", "int8/128" if text == "int8-dynamic" else text)
    return module


CASES = (("int4", "contrib"), ("uint4", "standard"), ("int8-dynamic", "contrib"))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory) -> tuple[str, nn.Module, Path]:
    text, operators = request.param
    module, path = stored(text), tmp_path_factory.mktemp("formats") / "model.onnx"
    export_onnx(module, tokens(), path, ExportOptions(operators=operators))
    return text, module, path


def test_a_right_file_passes_every_check(case):
    text, module, path = case
    report = verify(path, module, tokens())
    assert report.ok, report.failed
    assert report["formats"].detail.startswith("all 7 stored weights are in it as stored: ")
    kernel = "MatMulIntegerToFloat" if text == "int8-dynamic" else "MatMulNBits"
    assert any(kernel in held for held in report["formats"].numbers["held"])
    assert sum(report["formats"].numbers["held"].values()) == 7
    assert report["arithmetic"].passed
    assert report["values"].passed


@pytest.mark.parametrize(
    ("operators", "text"), [("contrib", "int8/32"), ("standard", "int8"), ("standard", "uint4")]
)
def test_exact_products_pass_without_allowance_for_rounded_inputs(operators, text, tmp_path):
    module, path = stored(text), tmp_path / "model.onnx"
    export_onnx(module, tokens(), path, ExportOptions(operators=operators, products="exact"))
    report = verify(path, module, tokens())
    assert report.ok, report.failed
    assert "in the file, floats in memory" in report["formats"].detail
    assert report["parity"].numbers["activations"] == 0
    with pytest.raises(KeyError):
        report[FLOAT32]


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
def test_a_standard_file_for_a_gpu_passes_with_the_kernels_it_needs(provider, tmp_path):
    module, path = stored("int4"), tmp_path / "model.onnx"
    export_onnx(module, tokens(), path, ExportOptions(operators="standard", provider=provider))
    report = verify(path, module, tokens())
    assert report.ok, report.failed
    assert report["kernels"].detail == "every node has a CUDA kernel in fp32"
    assert sum(report["formats"].numbers["held"].values()) == 7


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_codes_of_a_network_in_half_precision_are_not_rounded_to_it(dtype, tmp_path):
    module, path = stored("int8").to(dtype), tmp_path / "model.onnx"
    export_onnx(module, tokens(), path)
    report = verify(path, module, tokens())
    assert report.ok, report.failed
    assert sum(report["formats"].numbers["held"].values()) == 7


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_a_graph_of_stored_weights_alone_has_the_precision_in_which_it_computes(
    precision, tmp_path
):
    module = nn.Sequential(nn.Linear(32, 16, bias=False), nn.ReLU(), nn.Linear(16, 8, bias=False))
    for name in ("0.weight", "2.weight"):
        store_(module, name, "int4")
    path, batch = tmp_path / "model.onnx", {"input": torch.randn(4, 32)}
    export_onnx(module, batch, path, ExportOptions(precision=precision))
    report = verify(path, module, batch)
    assert report.precision == precision
    assert report.ok, report.failed


def test_products_of_rounded_inputs_are_computed_again(case):
    text, module, path = case
    report = verify(path, module, tokens())
    if text != "int8-dynamic":
        with pytest.raises(KeyError):
            report["integer products"]
        return
    check = report["integer products"]
    assert check.detail.startswith("all 6 layers compute with their rounded inputs; ")
    assert check.numbers["error"] <= check.numbers["allowed"] < 1e-5


@pytest.mark.parametrize(
    ("largest", "said"),
    [
        ("activations", "another rounding of the inputs of products to 8 bits changes the outputs"),
        (
            "rounding",
            "rounding the weights to the graph's precision changes the outputs by 6.0e-01",
        ),
        ("own", "torch's own float32 is off by 6.0e-01"),
    ],
)
def test_a_comparison_that_tells_nothing_names_what_makes_it_so(largest, said):
    errors = {"rounding": 1e-3, "own": 1e-3, "activations": 1e-3, largest: 0.6}
    result = ParityResult(errors={"y": 0.5}, cases=("1",), broken=None, **errors)
    factor = {"activations": 2, "rounding": 4, "own": 8}[largest]  # what parity allows of each
    assert why_unknown(result, factor * 0.6).startswith(said)


def test_a_constant_of_another_size_is_not_said_to_hold_the_values(tmp_path):
    """A file is compared with another network, whose layer of this name has another size."""
    small, path = nn.Sequential(nn.Linear(32, 16, bias=False)), tmp_path / "model.onnx"
    batch = {"input": torch.randn(4, 32)}
    store_(small, "0.weight", "int4")
    export_onnx(small, batch, path)
    wide = nn.Sequential(nn.Linear(32, 24, bias=False))
    report = verify(path, wide, batch)
    assert report["values"].passed is False
    assert report["values"].detail == "0.weight.T has another size or type than 0.weight"


def test_a_difference_says_what_differs():
    assert str(Difference("a.weight", "a.weight.T", fault="swapped")).endswith("values of a.weight")
    assert str(Difference("a.weight", "a.weight", row=3)) == "a.weight differs in row 3"
    off = str(Difference("a.weight", "x", 0.25, 2))
    assert off == "a.weight (stored as x) is off by 2.5e-01 of its scale in row 2"


@pytest.mark.parametrize("fault", [1.0, 1.001])
def test_a_product_of_a_rounded_input_may_not_be_off(fault):
    generator = torch.Generator().manual_seed(0)
    x, weight = (torch.randn(shape, generator=generator) for shape in ((9, 64), (64, 32)))
    error, allowed = product_error(x, fault * (rounded_input(x) @ weight), weight)
    assert (error <= allowed) == (fault == 1)


def test_a_value_between_two_codes_may_get_either():
    x = torch.tensor([[0.0, 255.0, 7.5, 100.0]])  # codes are the values themselves
    weight = torch.eye(4)
    for code in (7.0, 8.0):
        error, allowed = product_error(x, torch.tensor([[0.0, 255.0, code, 100.0]]), weight)
        assert error <= allowed
    error, allowed = product_error(x, torch.tensor([[0.0, 255.0, 8.0, 102.0]]), weight)
    assert error > allowed


def edited(path: Path, edit: Callable[[dict[str, Any], Any], None], folder: Path) -> Path:
    """A copy of the file with other initializers; `edit` gets their arrays by name."""
    model = ir.load(path)
    values = model.graph.initializers
    arrays = {name: value.const_value.numpy().copy() for name, value in values.items()}
    before = dict(arrays)
    edit(arrays, model)
    for name, array in arrays.items():
        if name in values and array is not before[name]:
            values[name].const_value = ir.tensor(array, dtype=values[name].dtype, name=name)
    ir.save(model, folder / "wrong.onnx")
    return folder / "wrong.onnx"


def scale_off(arrays: dict[str, Any], _: Any) -> None:
    arrays["value.weight.scales"] = arrays["value.weight.scales"] * np.float16(1.01)


def rows_swapped(arrays: dict[str, Any], _: Any) -> None:
    codes = arrays["value.weight.codes"]
    order = [1, 0, *range(2, len(codes))]
    arrays["value.weight.codes"] = codes[order]


def table_rows_swapped(arrays: dict[str, Any], _: Any) -> None:
    codes = arrays["embed.weight.codes"]  # of tokens that the example does not hold
    unread = sorted(set(range(50)) - set(tokens()["input_ids"].flatten().tolist()))[:2]
    order = np.arange(len(codes))
    order[unread] = unread[::-1]
    arrays["embed.weight.codes"] = codes[order]


def layers_exchanged(arrays: dict[str, Any], _: Any) -> None:
    for part in ("codes", "scales", "zeros"):
        if f"query.weight.{part}" in arrays:
            a, b = (f"{name}.weight.{part}" for name in ("query", "key"))
            arrays[a], arrays[b] = arrays[b].copy(), arrays[a].copy()


def zeros_lost(_: dict[str, Any], model: Any) -> None:
    """Another constant takes the place of the zero points."""
    zeros = model.graph.initializers["value.weight.zeros"]
    middles = np.full(zeros.const_value.shape, 8).astype(zeros.dtype.numpy())
    zeros.const_value = ir.tensor(middles, dtype=zeros.dtype, name=zeros.name)


FAULTS = (scale_off, rows_swapped, table_rows_swapped, layers_exchanged)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_in_the_stored_values_is_found(case, fault, tmp_path):
    text, module, path = case
    report = verify(edited(path, fault, tmp_path), module, tokens())
    layers = {table_rows_swapped: "embed.weight", layers_exchanged: "query.weight"}
    assert report["values"].passed is False
    assert layers.get(fault, "value.weight") in report["values"].detail
    # An exchanged weight is in the graph as stored, at another place
    assert report["formats"].passed is (fault is layers_exchanged)
    if fault is table_rows_swapped:
        return  # no input of the example reads it
    assert report["arithmetic"].passed is False or report["parity"].passed is False
    if text != "int8-dynamic":
        assert report[FLOAT32].passed is False


def test_lost_zero_points_are_found(tmp_path):
    module, path = stored("uint4"), tmp_path / "model.onnx"
    export_onnx(module, tokens(), path)
    report = verify(edited(path, zeros_lost, tmp_path), module, tokens())
    assert {check.name for check in report.failed} >= {"values", "formats", FLOAT32}


def test_zero_points_that_the_product_does_not_read_are_found(tmp_path):
    module, path = stored("uint4"), tmp_path / "model.onnx"
    export_onnx(module, tokens(), path)

    def disconnect(_: dict[str, Any], model: Any) -> None:
        node = next(n for n in model.graph if n.op_type == "MatMulNBits")
        node.replace_input_with(3, None)

    report = verify(edited(path, disconnect, tmp_path), module, tokens())
    assert {check.name for check in report.failed} >= {"values", "formats", FLOAT32}


def test_an_input_rounded_with_the_wrong_scale_is_found(tmp_path):
    module, path = stored("int8-dynamic"), tmp_path / "model.onnx"
    export_onnx(module, tokens(), path)

    def exchange(_: dict[str, Any], model: Any) -> None:
        """The product of one layer is scaled by the step of another layer's input."""
        steps = [n.outputs[1] for n in model.graph if n.op_type == "DynamicQuantizeLinear"]
        scaled = next(n for n in model.graph if n.op_type == "Mul" and steps[1] in n.inputs)
        scaled.replace_input_with(list(scaled.inputs).index(steps[1]), steps[0])

    report = verify(edited(path, exchange, tmp_path), module, tokens())
    assert not report.ok
    assert report["parity"].passed is False


def test_weights_that_are_floats_in_the_file_are_reported(tmp_path):
    module, path = stored("int4"), tmp_path / "model.onnx"
    export_onnx(plain_copy(module), tokens(), path)
    report = verify(path, module, tokens())
    assert [check.name for check in report.failed] == ["formats"]
    assert "floats again when the file is opened: " in report["formats"].detail
    assert len(report["formats"].numbers["dequantised"]) == 7


def test_a_product_that_is_dequantised_in_every_run_is_reported(tmp_path):
    module, path = stored("int4"), tmp_path / "model.onnx"
    export_onnx(module, tokens(), path, ExportOptions(operators="standard"))

    def turn(_: dict[str, Any], model: Any) -> None:
        """DequantizeLinear of the codes in another orientation, which no session fuses."""
        node = next(n for n in model.graph if n.name.startswith("value.weight.values"))
        for index, part in enumerate(("codes", "scales")):
            value = node.inputs[index]
            constant = model.graph.initializers[f"value.weight.{part}"].const_value
            turned = ir.Value(
                name=f"{part}.turned",
                type=ir.TensorType(constant.dtype if part == "codes" else ir.DataType.FLOAT),
                const_value=ir.tensor(
                    np.ascontiguousarray(constant.numpy().T).astype(
                        constant.dtype.numpy() if part == "codes" else np.float32
                    ),
                    dtype=constant.dtype if part == "codes" else ir.DataType.FLOAT,
                    name=f"{part}.turned",
                ),
            )
            turned.shape = turned.const_value.shape
            model.graph.register_initializer(turned)
            assert value is not None
            node.replace_input_with(index, turned)
        node.attributes["axis"] = ir.AttrInt64("axis", 1)
        result = node.outputs[0]
        turn_back = ir.node("Transpose", [result], {"perm": [1, 0]})
        turn_back.outputs[0].dtype, turn_back.outputs[0].shape = result.dtype, result.shape
        result.replace_all_uses_with(turn_back.outputs[0])
        turn_back.replace_input_with(0, result)
        model.graph.insert_after(node, turn_back)

    report = verify(edited(path, turn, tmp_path), module, tokens())
    assert [check.name for check in report.failed] == ["formats"]
    assert report["formats"].detail.startswith("dequantised in every run: value.weight")


def test_rounded_inputs_have_no_kernel_on_a_gpu(tmp_path):
    module, path = stored("int8-dynamic"), tmp_path / "model.onnx"
    export_onnx(module, tokens(), path)
    report = verify(path, module, tokens(), VerifyOptions("cuda"))
    assert report["kernels"].passed is False
    assert "int8-dynamic is for a CPU" in report["kernels"].detail


def test_weight_only_formats_have_kernels_on_a_gpu(tmp_path):
    module, path = stored("int4"), tmp_path / "model.onnx"
    for precision in ("fp32", "fp16"):
        export_onnx(module, tokens(), path, ExportOptions(precision, provider="cuda"))
        report = verify(path, module, tokens(), VerifyOptions("cuda"))
        assert report["kernels"].passed, report["kernels"].detail


def test_the_parameters_of_a_file_are_those_of_its_network(case):
    _, module, path = case
    report = verify(path, module, tokens())
    plain = sum(p.numel() for p in plain_copy(module).parameters())
    assert report["budget"].numbers["params"] == plain


@pytest.mark.parametrize(("size", "block"), [(64, 32), (40, 32), (7, 16)])
def test_inputs_are_rounded_to_255_levels_of_each_block(size, block):
    x = torch.randn(5, size, generator=torch.Generator().manual_seed(0))
    rounded = rounded_by_blocks(x, block)
    for start in range(0, size, block):
        part, own = x[:, start : start + block], rounded[:, start : start + block]
        step = part.abs().amax(-1, keepdim=True) / 127
        levels = own / step
        assert torch.allclose(levels, levels.round(), atol=1e-4)
        assert bool(((own - part).abs() <= step / 2 * (1 + 1e-5)).all())
