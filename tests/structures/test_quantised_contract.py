"""What a structure in number formats promises, for every format, structure and kind of layer."""

from __future__ import annotations

import copy
import itertools
import json
from collections.abc import Iterator
from math import ceil
from pathlib import Path

import pytest
import torch
from random_moments import random_moments
from structure_cases import KINDS, SIZES, Case, Host
from torch import nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lrcompress.compression.replace import install_
from lrcompress.errors import FitError, PlanError
from lrcompress.fingerprint import distinct_state
from lrcompress.formats.weights import fill_
from lrcompress.layers import LayerSpec, describe, weight_matrix
from lrcompress.metrics import METRICS, Whitening
from lrcompress.number_formats import (
    FORMATS,
    Bf16,
    Format,
    Fp16,
    Fp32,
    GridFormat,
    Int2,
    Int4,
    Int8,
    Int8Dynamic,
    UInt2,
    UInt4,
)
from lrcompress.rounding import product_loss
from lrcompress.structures import (
    STRUCTURES,
    Blast,
    Dense,
    Factors,
    Interpolative,
    LowRank,
    Quantised,
    Structure,
    in_format,
)
from lrcompress.structures.dynamic_input import DynamicLinear, rounded_input
from lrcompress.structures.format_range import SQUARED_ERROR
from lrcompress.structures.serial import structure_from_json, structure_to_json
from lrcompress.structures.stored_codes import restore_plain_, stored_weights

# Sums of a few hundred float64 products of order one.
FP64 = {"rtol": 1e-10, "atol": 1e-11}
LINEAR = ("linear", "transposed_linear")
INNER: tuple[Structure, ...] = (Dense(), LowRank(3), Blast(2, 2, 3))
ONE_FOR_ALL = tuple((kind(),) for kind in FORMATS.values())
EACH = {
    "low_rank": (
        (Int8(), Int4(16)),
        (Int4(), Fp16()),
        (Bf16(), UInt4()),
        (Int8Dynamic(), Int4()),
        (Int2(), Int8Dynamic()),
    ),
    "blast": ((Int8(), Fp16(), Int4()),),
    "dense": (),
}


def spec_of(host: Host) -> LayerSpec:
    (spec,) = describe(host).layers
    return spec


def suits(structure: Quantised, spec: LayerSpec) -> bool:
    inner = structure.structure
    if structure.rounds_inputs and (spec.kind not in LINEAR or inner.type_name == "blast"):
        return False
    return bool(SIZES[inner.type_name](spec))


def structures(inner: Structure, spec: LayerSpec) -> list[Quantised]:
    """The structure in every format, and in several formats at once."""
    every = (*ONE_FOR_ALL, *EACH[inner.type_name])
    made = [Quantised(inner, formats) for formats in every]
    return [structure for structure in made if suits(structure, spec)]


every_pair = pytest.mark.parametrize(
    ("inner", "case"),
    [
        pytest.param(inner, case, id=f"{inner.type_name}, {name}")
        for inner in INNER
        for name, case in KINDS.items()
        if structures(inner, spec_of(case.host()))
    ],
)
every_kind = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS.keys())

FITTED: dict[tuple[object, ...], Factors] = {}


def fit(host: Host, structure: Structure) -> Factors:
    """Fitted once for all tests, which want the same structures of the same weights."""
    weight, spec = weight_matrix(host.layer), spec_of(host)
    key = (structure, spec, weight.double().numpy().tobytes())
    if key not in FITTED:
        FITTED[key] = structure.fit(weight.double(), Whitening(), spec)
    return {name: part.clone() for name, part in FITTED[key].items()}


def installed(host: Host, structure: Structure) -> Host:
    host = copy.deepcopy(host)
    bias = getattr(host.layer, "bias", None)
    bias = None if bias is None else bias.detach()
    factors = structure.stored(fit(host, structure), host.layer.weight.dtype)
    install_(host, spec_of(host), structure, factors, bias)
    return host


def each(case: Case, inner: Structure) -> Iterator[tuple[Host, Quantised, Host]]:
    host = case.host()
    for structure in structures(inner, spec_of(host)):
        yield host, structure, installed(host, structure)


def rounding(structure: Quantised, spec: LayerSpec) -> dict[str, bool]:
    """Whether each factor's layer rounds its inputs."""
    return {
        name: isinstance(format, GridFormat) and format.activations
        for name, format in structure.format_of(spec).items()
    }


# ---- what it computes -----------------------------------------------------------------------


@every_pair
def test_the_module_computes_what_its_dense_weight_would(inner: Structure, case: Case) -> None:
    x = case.inputs()
    for host, structure, built in each(case, inner):
        if structure.rounds_inputs:
            continue
        stand_in = copy.deepcopy(host)
        weight_matrix(stand_in.layer).copy_(structure.dense(fit(host, structure), spec_of(host)))
        torch.testing.assert_close(built(x), stand_in(x), **FP64)


@every_pair
def test_int8_dynamic_rounds_the_input_of_each_product(inner: Structure, case: Case) -> None:
    x = case.inputs()
    for host, structure, built in each(case, inner):
        if not structure.rounds_inputs:
            continue
        spec, layer = spec_of(host), host.layer
        plain, rounds = structure.plain(fit(host, structure), spec), rounding(structure, spec)
        out = x
        for name in reversed(plain):  # right, then left
            out = rounded_input(out) if rounds[name] else out
            out = functional.linear(out, plain[name][0].double())
        out = out if layer.bias is None else out + layer.bias
        torch.testing.assert_close(built(x), out, **FP64)
        assert any(isinstance(part, DynamicLinear) for part in built.modules())


@every_pair
def test_the_weight_is_the_dense_matrix(inner: Structure, case: Case) -> None:
    for host, structure, built in each(case, inner):
        expected = structure.dense(fit(host, structure), spec_of(host))
        weight = host.layer.weight
        if isinstance(host.layer, nn.Embedding):
            expected = expected[0].mT
        elif not isinstance(host.layer, Conv1D):  # whose replacement stores no transpose
            expected = expected.reshape(weight.shape)
        else:
            expected = expected[0]
        torch.testing.assert_close(built.layer.weight, expected, **FP64)
        if built.head is not None:
            torch.testing.assert_close(built.head.weight, expected, **FP64)


@every_pair
def test_values_are_those_of_the_format(inner: Structure, case: Case) -> None:
    """fp16 and bf16 hold the fitted factors, cast; codes lie within their bits."""
    for host, structure, _ in each(case, inner):
        spec, factors = spec_of(host), fit(host, structure)
        for name, format in structure.format_of(spec).items():
            codes = structure.codes(factors, name, spec)
            if isinstance(format, GridFormat):
                assert codes is not None
                assert codes.codes.shape == structure.matrix_shape(name, spec)
                assert int(codes.codes.max()) < 1 << format.bits
                assert int(codes.codes.min()) >= int(format.narrow)
                assert torch.equal(codes.grid.scales.half().float(), codes.grid.scales)
            else:
                assert codes is None
                shape = structure.factor_shapes(spec)[name]
                assert structure.plain(factors, spec)[name].shape == shape


@every_pair
def test_more_bits_lose_less(inner: Structure, case: Case) -> None:
    """Each step of a grid is 4 or 16 times finer: far more than the search of ranges may gain."""
    host = case.host()
    spec, weight = spec_of(host), weight_matrix(host.layer)
    whitening = METRICS["two-sided"].whitening(random_moments(spec), shrinkage=0.1)
    fitted = inner.fit(weight, whitening, spec)
    least = float(whitening.loss(weight - inner.dense(fitted, spec)))
    losses = [
        float(whitening.loss(weight - made.dense(made.fit(weight, whitening, spec), spec)))
        for made in (Quantised(inner, (format,)) for format in (Int2(), Int4(), Int8(), Fp32()))
    ]
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == pytest.approx(least, rel=1e-5, abs=1e-12 * float(whitening.loss(weight)))


@every_kind
def test_a_dense_weight_is_rounded_in_its_metric(case: Case) -> None:
    """The loss is the trace that rounding minimises, summed over groups; embeddings are stored by
    token, so that the sides change places."""
    host = case.host()
    spec, weight = spec_of(host), weight_matrix(host.layer)
    whitening = METRICS["two-sided"].whitening(random_moments(spec), shrinkage=0.1)
    structure = Quantised(Dense(), (Int4(),))
    factors = structure.fit(weight, whitening, spec)
    loss = structure.loss(factors, weight, whitening, spec)
    inputs, outputs = whitening.input.gram(), whitening.output.gram()
    total = 0.0
    for group in range(spec.groups):
        total += product_loss(
            weight[group],
            structure.dense(factors, spec)[group],
            None if inputs is None else inputs[group],
            None if outputs is None else outputs[group],
        )
    assert loss == pytest.approx(total, rel=1e-6)


# ---- what is stored -------------------------------------------------------------------------


@every_pair
def test_factors_are_as_empty_ones_are_shaped(inner: Structure, case: Case) -> None:
    for host, structure, _ in each(case, inner):
        factors, empty = fit(host, structure), structure.empty_factors(spec_of(host))
        assert {k: v.shape for k, v in factors.items()} == {k: v.shape for k, v in empty.items()}


@every_pair
def test_a_file_carries_the_whole_module(inner: Structure, case: Case) -> None:
    """As a run folder is read: empty factors, filled with what the file holds."""
    x = case.inputs(torch.float32)
    host = case.host(torch.float32)
    for structure in structures(inner, spec_of(host)):
        built = installed(host, structure)
        state = {name: tensor.clone() for name, tensor in distinct_state(built).items()}
        fresh = case.host(torch.float32)
        spec, bias = spec_of(fresh), getattr(fresh.layer, "bias", None)
        bias = None if bias is None else torch.zeros_like(bias)
        install_(fresh, spec, structure, structure.empty_factors(spec), bias)
        fill_(fresh, state, state.__getitem__, Path("file"), keep_dtype=True)
        assert torch.equal(fresh(x), built(x))
        for name, tensor in distinct_state(fresh).items():
            assert tensor.dtype is state[name].dtype
            assert torch.equal(tensor, state[name])


def stored_bytes(module: nn.Module) -> int:
    """Bytes of codes, scales, zero points and cast values; shared ones count once."""
    state = distinct_state(module)
    return sum(t.nbytes for name, t in state.items() if ".parametrizations." in f".{name}")


@every_pair
def test_bytes_counted_are_those_stored(inner: Structure, case: Case) -> None:
    """Kernels of products with fewer than 8 bits take whole blocks; what these add counts too."""
    for host, structure, built in each(case, inner):
        spec = spec_of(host)
        padding = 0
        for stored in stored_weights(built.layer):
            if stored.codes is None or spec.kind not in LINEAR or inner.type_name == "blast":
                continue
            if stored.codes.grid.bits == 8:
                continue
            grid, (rows, columns) = stored.codes.grid, stored.codes.codes.shape
            whole = grid.scales.shape[1] * grid.block
            padding += rows * (ceil(whole * grid.bits / 8) - ceil(columns * grid.bits / 8))
        assert structure.nbytes(spec, 4) == stored_bytes(built) + padding
        assert structure.nbytes(spec, 2) == structure.nbytes(spec, 4)
        assert structure.weight_params(spec) == inner.weight_params(spec)
        assert structure.flops_per_row(spec) == inner.flops_per_row(spec)


@every_pair
def test_stored_weights_have_the_names_and_shapes_of_plain_ones(
    inner: Structure, case: Case
) -> None:
    for host, structure, built in each(case, inner):
        spec = spec_of(host)
        plain = inner.fit(weight_matrix(host.layer), Whitening(), spec)
        stand_in = copy.deepcopy(host)
        install_(stand_in, spec, inner, plain, None)
        expected = dict(stand_in.named_parameters())
        found = {stored.name: stored for stored in stored_weights(built)}
        places = structure.places(spec)
        assert set(found) == {f"layer.{place.path}" for place in places.values()}
        for factor, format in structure.format_of(spec).items():
            stored = found[f"layer.{places[factor].path}"]
            assert stored.format == format
            if not isinstance(host.layer, Conv1D) or inner.type_name != "dense":
                assert stored.shape == expected[stored.name].shape
            assert stored.values.shape == stored.shape


@every_pair
def test_plain_parameters_of_the_same_values_can_be_restored(inner: Structure, case: Case) -> None:
    x = case.inputs()
    for _, _, built in each(case, inner):
        before, plain = built(x), copy.deepcopy(built)
        restore_plain_(plain)
        assert not list(stored_weights(plain))
        assert not any("parametrizations" in name for name, _ in plain.named_parameters())
        torch.testing.assert_close(plain(x), before, **FP64)


@every_pair
def test_the_original_layer_is_left_as_it_was(inner: Structure, case: Case) -> None:
    """The originals are shown again after a plan was tried."""
    host, x = case.host(), case.inputs()
    before = host.layer(x)
    for structure in structures(inner, spec_of(host)):
        network, layer = copy.deepcopy(host), host.layer
        network.layer = layer
        bias = getattr(layer, "bias", None)
        factors = structure.stored(fit(host, structure), torch.float64)
        spec = spec_of(host)
        install_(network, spec, structure, factors, None if bias is None else bias.detach())
        for tensor in network.layer.state_dict().values():
            tensor.zero_()
        assert isinstance(layer.weight, nn.Parameter)
        assert torch.equal(layer(x), before)


# ---- what a module may be asked -------------------------------------------------------------


@every_pair
def test_a_copy_is_equal_and_apart(inner: Structure, case: Case) -> None:
    x = case.inputs()
    for _, _, built in each(case, inner):
        other = copy.deepcopy(built)
        before = built(x)
        assert torch.equal(other(x), before)
        for tensor in other.state_dict().values():
            tensor.zero_()
        assert torch.equal(built(x), before)


@every_pair
def test_it_follows_the_dtype_of_its_network(inner: Structure, case: Case) -> None:
    """Values are rounded to the dtype; scales too, where it has fewer digits than float16."""
    for _, _, built in each(case, inner):
        values = {stored.name: stored.values for stored in stored_weights(built)}
        for dtype in (torch.float32, torch.float16, torch.bfloat16):
            other = copy.deepcopy(built).to(dtype)
            eps = torch.finfo(dtype).eps  # both of the scale and of the value, half each
            for stored in stored_weights(other):
                assert stored.values.dtype is dtype
                close = {"rtol": eps, "atol": 1e-7 if dtype is torch.float16 else 1e-30}
                torch.testing.assert_close(stored.values.double(), values[stored.name], **close)
            assert other(case.inputs(dtype)).dtype is dtype
            assert other.layer.weight.dtype is dtype
        again = copy.deepcopy(built).to(torch.float32).to(torch.float64)
        for stored in stored_weights(again):
            assert torch.equal(stored.values.float(), values[stored.name].float())


@every_pair
def test_codes_stay_integers_in_every_dtype(inner: Structure, case: Case) -> None:
    for _, _, built in each(case, inner):
        before = {n: t for n, t in built.state_dict().items() if t.dtype is torch.uint8}
        after = copy.deepcopy(built).to(torch.bfloat16).state_dict()
        assert all(torch.equal(after[name], codes) for name, codes in before.items())


@every_pair
def test_mode_device_and_need_of_gradients_are_kept(inner: Structure, case: Case) -> None:
    for training, trainable in itertools.product((False, True), (False, True)):
        host = case.host(torch.float32).train(training)
        for name, parameter in host.named_parameters():
            parameter.requires_grad_(trainable != name.endswith("bias"))
        structure = Quantised(inner, (Int4(),))
        built = installed(host, structure)
        assert all(part.training == training for part in built.modules())
        for name, parameter in built.named_parameters():  # codes are none
            assert name.endswith("bias"), name
            assert parameter.requires_grad != trainable
        for tensor in built.state_dict().values():
            assert tensor.device == host.layer.weight.device


@every_pair
def test_gradients_reach_the_input_and_the_bias(inner: Structure, case: Case) -> None:
    x = case.inputs()
    for _, _, built in each(case, inner):
        inputs = x.clone().requires_grad_() if x.is_floating_point() else x
        out = built(inputs)
        if not out.requires_grad:  # an embedding: neither
            continue
        out.square().sum().backward()
        if inputs.is_floating_point():
            assert float(torch.as_tensor(inputs.grad).abs().sum()) > 0
        for name, parameter in built.named_parameters():
            assert parameter.grad is not None, name


@every_pair
def test_the_layer_s_hooks_run(inner: Structure, case: Case) -> None:
    host = case.host()
    seen: list[str] = []
    host.layer.register_forward_pre_hook(lambda *_: seen.append("before"))
    host.layer.register_forward_hook(lambda *_: seen.append("after"))
    structure = structures(inner, spec_of(host))[-1]
    built = installed(host, structure)
    built(case.inputs())
    assert seen == ["before", "after"]


@every_pair
def test_the_module_can_be_asked_as_the_layer_was(inner: Structure, case: Case) -> None:
    asked = ("in_features", "out_features", "num_embeddings", "embedding_dim", "padding_idx")
    conv = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    for host, _, built in each(case, inner):
        for attribute in (*asked, *conv):
            if hasattr(host.layer, attribute):
                expected = getattr(host.layer, attribute)
                assert getattr(built.layer, attribute) == expected, attribute
        bias = getattr(host.layer, "bias", None)
        after = getattr(built.layer, "bias", None)
        assert (bias is None) == (after is None)
        if bias is not None:
            assert torch.equal(after, bias)


@every_pair
def test_a_network_with_stored_weights_can_be_described(inner: Structure, case: Case) -> None:
    """As when a run folder is given as a model: stored weights are left alone, with a reason."""
    for _, _, built in each(case, inner):
        found = describe(built)
        assert not [spec for spec in found.layers if spec.name.startswith("layer")]
        assert all(left.reason for left in found.left_alone)


def test_a_tied_head_reads_the_table_of_its_embedding() -> None:
    host = KINDS["tied embedding"].host()
    built = installed(host, Quantised(Dense(), (Int4(),)))
    assert built.head is not None
    assert built.head.table is built.layer
    assert torch.equal(built.head.bias, torch.as_tensor(host.head.bias))
    x = torch.tensor([[1, 2], [3, 11]])
    table = built.layer.weight
    torch.testing.assert_close(built(x), table[x] @ table.mT + built.head.bias, **FP64)
    low_rank = installed(host, Quantised(LowRank(3), (Int8(), Int4())))
    assert low_rank.head.codes is low_rank.layer.codes
    assert low_rank.head.up is low_rank.layer.up


def test_a_bias_that_layers_share_stays_one() -> None:
    network = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    network[1].bias = network[0].bias
    for spec in describe(network).layers:
        for structure in (Quantised(Dense(), (Int4(),)), Quantised(LowRank(2), (Int4(),))):
            copied = copy.deepcopy(network)
            weight = weight_matrix(copied.get_submodule(spec.name)).double()
            factors = structure.fit(weight, Whitening(), spec)
            install_(copied, spec, structure, factors, copied[0].bias.detach())
            assert copied[0].bias is copied[1].bias


def test_a_subclass_keeps_its_forward() -> None:
    """Convolutions and embeddings are copied with all that they hold."""

    class Scaled(nn.Conv2d):
        gain = 2.0

    host = Host(Scaled(4, 6, 3, padding=1)).eval()
    host.layer.note = "kept"
    built = installed(host, Quantised(Dense(), (Int8(),)))
    assert isinstance(built.layer, Scaled)
    assert (built.layer.gain, built.layer.note) == (2.0, "kept")
    assert isinstance(host.layer.weight, nn.Parameter)  # the original is as it was
    assert type(host.layer) is Scaled


# ---- texts and refusals ---------------------------------------------------------------------


@every_pair
def test_json_gives_the_structure_back(inner: Structure, case: Case) -> None:
    for structure in structures(inner, spec_of(case.host())):
        value = json.loads(json.dumps(structure_to_json(structure)))
        assert structure_from_json(value, "layer") == structure
        assert value["type"] == inner.type_name
        assert value["format"] == structure.format_text
        assert {structure: 1}[structure_from_json(value, "layer")] == 1
        assert in_format(structure) == (inner, structure.formats)


def test_json_is_as_documented() -> None:
    value = {"type": "low_rank", "rank": 48, "format": "int4/32"}
    assert structure_from_json(value, "x") == Quantised(LowRank(48), (Int4(),))
    value["format"] = "int8, int4"
    assert structure_from_json(value, "x") == Quantised(LowRank(48), (Int8(), Int4()))
    assert structure_to_json(structure_from_json(value, "x"))["format"] == "int8/128, int4/32"
    value["format"] = "stored"
    assert structure_from_json(value, "x") == LowRank(48)


@pytest.mark.parametrize(
    "format", ["", "int5", "int4/33", "int4,", ",", "int4;int8", 4, None, True, ["int4"], {}, 1e9]
)
def test_a_wrong_format_is_refused_by_layer(format: object) -> None:
    value = {"type": "low_rank", "rank": 2, "format": format}
    with pytest.raises(PlanError, match=r"^a\.b: .*format") as caught:
        structure_from_json(value, "a.b")
    assert "\n" not in str(caught.value)
    assert any(step in str(caught.value) for step in ("; correct it", "; write", "is not one of"))


@every_kind
@pytest.mark.parametrize("structure_type", STRUCTURES)
def test_what_takes_no_format_is_refused_by_name(structure_type: str, case: Case) -> None:
    spec = spec_of(case.host())
    for inner in SIZES[structure_type](spec)[:1]:
        if inner.places(spec):
            for structure in structures(inner, spec) if inner.type_name in EACH else ():
                structure.check(spec)
            continue
        with pytest.raises(PlanError, match=r"^layer: .* takes no number format; ") as caught:
            Quantised(inner, (Int4(),)).check(spec)
        assert structure_type in str(caught.value)


@every_kind
def test_int8_dynamic_is_refused_where_no_input_is_multiplied(case: Case) -> None:
    spec = spec_of(case.host())
    for inner in INNER:
        if not SIZES[inner.type_name](spec):
            continue
        structure = Quantised(inner, (Int8Dynamic(),))
        if suits(structure, spec):
            structure.check(spec)
        else:
            with pytest.raises(PlanError, match=r"^layer: int8-dynamic .*; use int8"):
                structure.check(spec)


@pytest.mark.parametrize(
    ("structure", "formats"), [(Dense(), 2), (LowRank(2), 3), (Blast(2, 2), 2)], ids=str
)
def test_other_numbers_of_formats_are_refused(structure: Structure, formats: int) -> None:
    spec = LayerSpec("a.b", "linear", 6, 6, 1, bias=True)
    made = Quantised(structure, (Int4(),) * formats)
    with pytest.raises(PlanError, match=rf"^a\.b: {formats} formats for .*; give one"):
        made.check(spec)


def test_the_sizes_of_the_inner_structure_are_checked() -> None:
    spec = LayerSpec("a.b", "linear", 6, 6, 1, bias=True)
    for wrong in (LowRank(7), LowRank(0), Blast(2, 7), Interpolative(3, 2)):
        with pytest.raises(PlanError, match=r"^a\.b: "):
            Quantised(wrong, (Int4(),)).check(spec)


@pytest.mark.parametrize("structure", [Dense(), LowRank(3)], ids=str)
def test_a_weight_beyond_the_largest_float16_is_refused_in_fp16(structure: Structure) -> None:
    spec = LayerSpec("l", "linear", 3, 3, 1, bias=False)
    weight = torch.eye(3, dtype=torch.float64)[None] * 1e10
    with pytest.raises(FitError, match=r"too large for fp16; use bf16"):
        Quantised(structure, (Fp16(),)).fit(weight, Whitening(), spec)
    for format in (Fp32(), Bf16()):
        made = Quantised(structure, (format,))
        dense = made.dense(made.fit(weight, Whitening(), spec), spec)
        torch.testing.assert_close(dense, weight, rtol=2 * 2**-8, atol=0)


@pytest.mark.parametrize(
    ("format", "largest", "smallest"),
    [  # of the weight: 65504 is the largest float16, 2^-24 the smallest
        (Fp16(), 65504.0, 2.0**-16),
        (Int8(32), 127 * 65000.0, 127 * 2.0**-18.9),
        (Int4(32), 7 * 65000.0, 7 * 2.0**-21.9),
        (UInt4(32), 7 * 65000.0, 7.5 * 2.0**-21.9),
    ],
    ids=str,
)
def test_a_weight_beyond_the_range_of_float16_scales_is_refused(
    format: Format, largest: float, smallest: float
) -> None:
    """Within the range the error is that of the format; beyond it the format is refused."""
    spec = LayerSpec("l", "linear", 16, 64, 1, bias=False)
    torch.manual_seed(0)
    weight = torch.rand(1, 16, 64, dtype=torch.float64) * 2 - 1
    weight[0, :, ::32], weight[0, 3] = 1, 0  # every block has the full range; a row of zeros
    made = Quantised(Dense(), (format,))

    def error(scale: float) -> float:
        dense = made.dense(made.fit(scale * weight, Whitening(), spec), spec)
        return float((dense / scale - weight).norm() / weight.norm())

    usual = error(1.0)
    assert error(largest) < 1.5 * usual
    assert error(smallest) < (SQUARED_ERROR**0.5 if format == Fp16() else 1.5 * usual)
    for scale, word in ((2 * largest, "large"), (1e10, "large"), (smallest / 8, "small"),
                        (1e-12, "small")):  # fmt: skip
        with pytest.raises(FitError, match=rf"too {word} for {format}(, whose scales|; use bf16)"):
            error(scale)
    in_bf16 = Quantised(Dense(), (Bf16(),))
    for scale in (1e10, 1e-12):
        dense = in_bf16.dense(in_bf16.fit(scale * weight, Whitening(), spec), spec)
        torch.testing.assert_close(dense, scale * weight, rtol=2.0**-8, atol=0)


def test_zeros_are_within_every_range() -> None:
    spec = LayerSpec("l", "linear", 4, 8, 1, bias=False)
    for formats in ONE_FOR_ALL:
        made = Quantised(Dense(), formats)
        factors = made.fit(torch.zeros(1, 4, 8, dtype=torch.float64), Whitening(), spec)
        assert not made.dense(factors, spec).any()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_never_rounded(value: float) -> None:
    weight = torch.ones(1, 4, 3, dtype=torch.float64)
    weight[0, 1, 2] = value
    spec = LayerSpec("l", "linear", 4, 3, 1, bias=False)
    for inner, formats in itertools.product((Dense(), LowRank(2)), ONE_FOR_ALL):
        with pytest.raises(FitError, match="not finite"):
            Quantised(inner, formats).fit(weight, Whitening(), spec)


def test_sizes_between_are_in_the_same_formats() -> None:
    small, large = Quantised(LowRank(2), (Int4(),)), Quantised(LowRank(5), (Int4(),))
    assert small.between(large) == tuple(Quantised(LowRank(r), (Int4(),)) for r in (3, 4))
    assert small.between(Quantised(LowRank(5), (Int8(),))) == ()
    assert small.between(LowRank(5)) == ()


def test_a_structure_in_formats_prints_both() -> None:
    formats: tuple[Format, ...] = (UInt2(), Int8(256))
    assert str(Quantised(LowRank(2), formats)) == f"{LowRank(2)} in uint2/32, int8/256"
