"""What every structure promises, for every layer it suits: a new structure adds a row to SIZES."""

from __future__ import annotations

import copy
import itertools
from dataclasses import fields, is_dataclass, replace
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from math import prod

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_moments import random_moments
from structure_cases import COUNT_INPUT_PIXELS, KINDS, SIZES, Case, Host
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.pytorch_utils import Conv1D

from lrcompress.compression.replace import install_
from lrcompress.errors import FitError, PlanError
from lrcompress.fingerprint import distinct_state
from lrcompress.layers import LayerSpec, describe, output_rows, weight_matrix
from lrcompress.metrics import METRICS, Whitening
from lrcompress.profiling.spectrum import loss_curve
from lrcompress.structures import (
    STRUCTURES,
    Factors,
    LowRank,
    Structure,
)

# Sums of a few hundred float64 products of order one.
FP64 = {"rtol": 1e-10, "atol": 1e-11}
# Whitening divides by roots down to sqrt(RELATIVE_FLOOR) of the largest, which multiplies
# rounding by up to 3e4 on each side: 3e4^2 * 2e-16 relative to the loss of a zero weight.
LOSS_TOLERANCE = 2e-7


def _spec(host: Host) -> LayerSpec:
    (spec,) = describe(host).layers
    return spec


every_structure = pytest.mark.parametrize("structure_type", STRUCTURES)
every_pair = pytest.mark.parametrize(
    ("structure_type", "case"),
    [
        pytest.param(structure_type, case, id=f"{structure_type}, {name}")
        for structure_type in STRUCTURES
        for name, case in KINDS.items()
        if SIZES[structure_type](_spec(case.host()))
    ],
)
every_kind = pytest.mark.parametrize("case", KINDS.values(), ids=KINDS.keys())
every_metric = pytest.mark.parametrize("metric", METRICS)


FITTED: dict[tuple[object, ...], Factors] = {}


def _fit(host: Host, structure: Structure) -> Factors:
    """Fitted once for all tests, which want the same sizes of the same weights."""
    weight, spec = weight_matrix(host.layer), _spec(host)
    key = (structure, spec, weight.dtype, weight.detach().double().numpy().tobytes())
    if key not in FITTED:
        FITTED[key] = structure.fit(weight, Whitening(), spec)
    return {name: part.clone() for name, part in FITTED[key].items()}


def _installed(host: Host, structure: Structure) -> Host:
    """A copy of the host with the structure fitted, plainly, in its layer's place."""
    host = copy.deepcopy(host)
    bias = getattr(host.layer, "bias", None)
    bias = None if bias is None else bias.detach()
    install_(host, _spec(host), structure, _fit(host, structure), bias)
    return host


def _sizes(structure_type: str, host: Host) -> list[Structure]:
    return SIZES[structure_type](_spec(host))


def test_every_structure_is_under_contract() -> None:
    assert SIZES.keys() == STRUCTURES.keys()
    assert {name: structure.type_name for name, structure in STRUCTURES.items()} == {
        name: name for name in STRUCTURES
    }


@every_pair
def test_what_is_no_size_is_refused_in_every_field(structure_type: str, case: Case) -> None:
    host = case.host()
    spec = _spec(host)
    values = (-1, -3, True, 2.0, "2", None, 2**63)
    for structure, value in itertools.product(_sizes(structure_type, host), values):
        assert is_dataclass(structure)
        for field in fields(structure):
            if field.type != "int":
                continue
            wrong = replace(structure, **{field.name: value})
            with pytest.raises(PlanError, match=rf"^layer: .*{field.name}") as caught:
                wrong.check(spec)
            assert "; " in str(caught.value)  # the next step


@every_pair
def test_parameters_counted_are_those_of_the_built_module(structure_type: str, case: Case) -> None:
    host = case.host()
    spec = _spec(host)
    biases = sum(p.numel() for name, p in host.named_parameters() if name.endswith("bias"))
    for structure in _sizes(structure_type, host):
        held = sum(p.numel() for p in _installed(host, structure).parameters())
        assert structure.weight_params(spec) + biases == held


@every_pair
def test_operations_counted_are_those_that_torch_counts(structure_type: str, case: Case) -> None:
    host = case.host()
    spec, x = _spec(host), case.inputs()
    rows = output_rows(host.layer, host.layer(x)).shape[:-2].numel()
    for structure in _sizes(structure_type, host):
        built = _installed(host, structure)
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            built(x)
        told, counted = structure.flops_per_row(spec) * rows, counter.get_total_flops()
        if structure.type_name in COUNT_INPUT_PIXELS:
            fewer, more = _pixels_of_the_input(host.layer, x)
            assert told * fewer <= counted <= told * more
        else:
            assert counted == told


def _pixels_of_the_input(layer: nn.Module, x: Tensor) -> tuple[Fraction, Fraction]:
    """Bounds of the true number over stride times output pixels: padding moves each axis alone, and
    a stage of a structure may have seen one axis at the output's size, another at the input's."""
    assert isinstance(layer, nn.Conv1d | nn.Conv2d)
    spatial = len(layer.kernel_size)
    sizes = zip(x.shape[-spatial:], layer(x).shape[-spatial:], layer.stride, strict=True)
    ratios = [Fraction(size, out * stride) for size, out, stride in sizes]
    return prod(min(r, Fraction(1)) for r in ratios), prod(max(r, Fraction(1)) for r in ratios)


@every_pair
def test_the_largest_size_is_the_layer_itself(structure_type: str, case: Case) -> None:
    host, x = case.host(), case.inputs()
    built = _installed(host, _sizes(structure_type, host)[-1])
    torch.testing.assert_close(built(x), host(x), **FP64)


@every_pair
def test_the_module_computes_what_its_dense_weight_would(structure_type: str, case: Case) -> None:
    host, x = case.host(), case.inputs()
    for structure in _sizes(structure_type, host):
        stand_in = copy.deepcopy(host)
        dense = structure.dense(_fit(host, structure), _spec(host))
        weight_matrix(stand_in.layer).copy_(dense)  # a view of the weight
        torch.testing.assert_close(_installed(host, structure)(x), stand_in(x), **FP64)


@every_pair
def test_dtype_device_mode_and_need_of_gradients_are_kept(structure_type: str, case: Case) -> None:
    dtypes = (torch.float32, torch.float16, torch.bfloat16)
    for dtype, trainable in itertools.product(dtypes, (True, False)):
        host = case.host(dtype)
        for name, parameter in host.named_parameters():
            # A bias that trains beside a frozen weight, and the other way round
            parameter.requires_grad_(trainable != name.endswith("bias"))
        built = _installed(host, _sizes(structure_type, host)[0])
        assert not any(m.training for m in built.modules())
        for name, parameter in built.named_parameters():
            assert parameter.dtype is dtype
            assert parameter.device == next(host.parameters()).device
            assert parameter.requires_grad == (trainable != name.endswith("bias")), name
        assert built(case.inputs(dtype)).dtype is dtype


@every_pair
def test_gradients_reach_every_factor(structure_type: str, case: Case) -> None:
    host, x = case.host(), case.inputs()
    for structure in _sizes(structure_type, host):
        built = _installed(host, structure)
        built(x).square().sum().backward()
        for name, parameter in built.named_parameters():
            assert parameter.grad is not None, name
            assert float(parameter.grad.abs().sum()) > 0, name


@every_pair
@every_metric
def test_error_never_grows_with_size(structure_type: str, case: Case, metric: str) -> None:
    host = case.host()
    spec, weight = _spec(host), weight_matrix(host.layer)
    whitening = METRICS[metric].whitening(random_moments(spec), shrinkage=0.1)
    losses: list[float] = []
    factors: Factors | None = None
    for structure in _sizes(structure_type, host):
        factors = structure.fit(weight, whitening, spec, start=factors)
        losses.append(float(whitening.loss(weight - structure.dense(factors, spec))))
    slack = LOSS_TOLERANCE * float(whitening.loss(weight))
    assert all(after <= before + slack for before, after in pairwise(losses))
    assert losses[-1] <= slack


@every_pair
def test_factors_are_as_empty_ones_are_shaped(structure_type: str, case: Case) -> None:
    host = case.host()
    for structure in _sizes(structure_type, host):
        factors, empty = _fit(host, structure), structure.empty_factors(_spec(host))
        assert {k: v.shape for k, v in factors.items()} == {k: v.shape for k, v in empty.items()}


@every_pair
def test_a_state_dict_carries_the_whole_module(structure_type: str, case: Case) -> None:
    host, x = case.host(), case.inputs()
    for structure in _sizes(structure_type, host)[:2]:
        built = _installed(host, structure)
        file = BytesIO()
        torch.save(distinct_state(built), file)
        file.seek(0)
        state = torch.load(file, weights_only=True)  # tensors alone: nothing to unpickle
        fresh = case.host()
        spec, bias = _spec(fresh), getattr(fresh.layer, "bias", None)
        bias = None if bias is None else torch.zeros_like(bias)
        install_(fresh, spec, structure, structure.empty_factors(spec), bias)
        missing, unexpected = fresh.load_state_dict(state, strict=False)
        assert not unexpected
        # A tensor under a second name comes with the first
        assert {id(fresh.state_dict(keep_vars=True)[name]) for name in missing} <= {
            id(fresh.state_dict(keep_vars=True)[name]) for name in state
        }
        torch.testing.assert_close(fresh(x), built(x), rtol=0, atol=0)


@every_pair
def test_a_copy_is_equal_and_apart(structure_type: str, case: Case) -> None:
    host, x = case.host(), case.inputs()
    built = _installed(host, _sizes(structure_type, host)[0])
    other = copy.deepcopy(built)
    before = built(x).detach()
    torch.testing.assert_close(other(x), before, rtol=0, atol=0)
    for parameter in other.parameters():
        parameter.data.add_(1)
    torch.testing.assert_close(built(x), before, rtol=0, atol=0)


@every_pair
def test_the_bias_is_kept(structure_type: str, case: Case) -> None:
    host = case.host()
    built = _installed(host, _sizes(structure_type, host)[0])
    for name in ("layer", "head"):
        before = getattr(getattr(host, name), "bias", None)
        after = getattr(getattr(built, name), "bias", None)
        assert (before is None) == (after is None)
        if before is not None:
            torch.testing.assert_close(after, before, rtol=0, atol=0)


@every_pair
def test_the_module_can_be_called_and_asked_as_the_layer_was(
    structure_type: str, case: Case
) -> None:
    host, x = case.host(), case.inputs()
    built = _installed(host, _sizes(structure_type, host)[0])
    if not isinstance(host.layer, Conv1D):  # which calls its argument x, and is called by place
        torch.testing.assert_close(built.layer(input=x), built.layer(x), rtol=0, atol=0)
    asked = ("in_features", "out_features", "num_embeddings", "embedding_dim", "padding_idx")
    conv = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    for attribute in (*asked, *conv):
        if hasattr(host.layer, attribute):
            assert getattr(built.layer, attribute) == getattr(host.layer, attribute), attribute
    assert built.layer.weight.dtype is host.layer.weight.dtype
    matrix = built.layer.weight
    if not isinstance(host.layer, Conv1D):  # which stores its transpose
        assert matrix.shape == host.layer.weight.shape


@every_structure
@every_kind
def test_a_layer_that_it_does_not_suit_is_refused_by_name(structure_type: str, case: Case) -> None:
    spec = _spec(case.host())
    suited = (SIZES[structure_type](_spec(other.host())) for other in KINDS.values())
    some = next(sizes for sizes in suited if sizes)[0]
    if not SIZES[structure_type](spec):
        assert STRUCTURES[structure_type].families(spec) == ()
        with pytest.raises(PlanError, match=r"^layer: "):
            some.check(spec)


@every_structure
def test_a_structure_is_a_value(structure_type: str) -> None:
    spec = LayerSpec("l", "linear", 5, 7, 1, bias=True)
    for structure in SIZES[structure_type](spec):
        again = copy.deepcopy(structure)
        assert {structure: "found"}[again] == "found"
        assert type(structure).__name__ in repr(structure)


@every_pair
def test_every_size_passes_its_check(structure_type: str, case: Case) -> None:
    spec = _spec(case.host())
    for structure in SIZES[structure_type](spec):
        structure.check(spec)


@every_kind
@pytest.mark.parametrize("beyond", [-1, 0, 1])
def test_a_rank_that_the_layer_lacks_is_refused_by_name(case: Case, beyond: int) -> None:
    spec = _spec(case.host())
    rank = beyond if beyond < 1 else min(spec.out_features, spec.in_features) + beyond
    with pytest.raises(PlanError, match=rf"layer: rank {rank} ") as refusal:
        LowRank(rank).check(spec)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_never_fitted(value: float) -> None:
    weight = torch.ones(1, 4, 3, dtype=torch.float64)
    weight[0, 1, 2] = value
    spec = LayerSpec("l", "linear", 4, 3, 1, bias=False)
    with pytest.raises(FitError, match="not finite"):
        LowRank(2).fit(weight, Whitening(), spec)


@pytest.mark.parametrize("weight", [torch.zeros(2, 5, 4), torch.ones(2, 5, 4)], ids=["0", "1"])
def test_constant_weights_are_fitted_exactly(weight: Tensor) -> None:
    spec = LayerSpec("l", "conv1d", 5, 4, 2, bias=False)
    for rank in range(1, 5):
        structure = LowRank(rank)
        dense = structure.dense(structure.fit(weight, Whitening(), spec), spec)
        torch.testing.assert_close(dense, weight.double(), **FP64)


@every_kind
@every_metric
def test_low_rank_loses_the_tail_of_the_spectrum(case: Case, metric: str) -> None:
    host = case.host()
    spec, weight = _spec(host), weight_matrix(host.layer)
    for examples, centred in itertools.product((40, 2), (False, True)):
        moments = random_moments(spec, examples=examples)
        whitening = METRICS[metric].whitening(moments, centred=centred)
        curve = loss_curve(torch.linalg.svdvals(whitening.whiten(weight)).square().sum(0).sqrt())
        for structure in SIZES["low_rank"](spec):
            assert isinstance(structure, LowRank)
            dense = structure.dense(structure.fit(weight, whitening, spec), spec)
            loss = float(whitening.loss(weight - dense))
            assert abs(loss - float(curve[structure.rank])) <= LOSS_TOLERANCE * float(curve[0])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    groups=st.integers(1, 2),
    m=st.integers(2, 8),
    n=st.integers(2, 8),
    rank=st.integers(1, 7),
    examples=st.integers(1, 12),
    metric=st.sampled_from(sorted(METRICS)),
    seed=st.integers(0, 2**16),
)
def test_no_other_weight_of_that_rank_loses_less(
    groups: int, m: int, n: int, rank: int, examples: int, metric: str, seed: int
) -> None:
    rank = min(rank, m, n)
    spec = LayerSpec("l", "linear", m, n, groups, bias=False)
    generator = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(groups, *shape, generator=generator, dtype=torch.float64)

    weight = draw(m, n)
    whitening = METRICS[metric].whitening(random_moments(spec, seed, examples=examples))
    fitted = LowRank(rank).fit(weight, whitening, spec)
    left, right = fitted["left"], fitted["right"]
    best = float(whitening.loss(weight - left @ right))
    slack = LOSS_TOLERANCE * float(whitening.loss(weight))
    for step in (1e-4, 1e-2, 1.0):  # near the fit, where only a true optimum resists
        near_left = left + step * left.abs().max() * draw(m, rank)
        near_right = right + step * right.abs().max() * draw(rank, n)
        assert float(whitening.loss(weight - near_left @ near_right)) >= best - slack
    for _ in range(5):  # and anywhere, at the candidate's best scale
        candidate = draw(m, rank) @ draw(rank, n)
        a, b = whitening.whiten(weight), whitening.whiten(candidate)
        candidate = candidate * ((a * b).sum() / b.square().sum().clamp_min(1e-300))
        assert float(whitening.loss(weight - candidate)) >= best - slack


@every_metric
def test_low_rank_factors_share_their_singular_values(metric: str) -> None:
    """Neither is large where the product is not, so rounding to a small type loses least."""
    host = KINDS["conv2d grouped"].host()
    whitening = METRICS[metric].whitening(random_moments(_spec(host), examples=2))
    factors = LowRank(3).fit(weight_matrix(host.layer), whitening, _spec(host))
    left, right = factors["left"], factors["right"]
    torch.testing.assert_close(left.mT @ left, right @ right.mT, **FP64)


def test_a_tied_head_uses_the_very_factors_of_its_embedding() -> None:
    host = KINDS["tied embedding"].host()
    built = _installed(host, LowRank(3))
    assert built.head is not None
    assert built.head.codes.weight is built.layer.codes.weight
    assert built.head.up.weight is built.layer.up.weight
