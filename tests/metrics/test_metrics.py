"""Claims of the metrics: roots of moments, and losses that are what they say on data."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Function
from random_moments import random_moments
from torch import Tensor, nn

from lrcompress.errors import DataError
from lrcompress.layers import LayerSpec
from lrcompress.metrics import METRICS, LayerMoments, Sensitivity
from lrcompress.metrics.root import RELATIVE_FLOOR, root_of
from lrcompress.network.objectives import OBJECTIVES
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile

# Eigenvalues below RELATIVE_FLOOR of the largest are dropped from a moment: that is its own
# rounding, and all that two exact computations may differ by, relative to the moment.
FLOOR = 10 * RELATIVE_FLOOR
FP64 = {"rtol": 1e-10, "atol": 1e-12}

SPEC = LayerSpec("l", "linear", 5, 7, 1, bias=True)
few = settings(max_examples=25, deadline=None, derandomize=True)


def _moment(k: int, rank: int, dead: int, seed: int) -> Tensor:
    """(2, k, k), positive semidefinite of that rank, without its first `dead` channels."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, rank, k, generator=generator, dtype=torch.float64)
    x[..., :dead] = 0
    return x.mT @ x


moments = st.builds(
    _moment, st.integers(1, 7), st.integers(0, 9), st.integers(0, 3), st.integers(0, 2**16)
)


@few
@given(moments, st.sampled_from(["full", "diagonal"]), st.sampled_from([0.0, 0.3]))
def test_a_root_squares_to_its_moment(moment: Tensor, form: str, shrinkage: float) -> None:
    diagonal = form == "diagonal"
    k = moment.shape[-1]
    if diagonal:
        moment = torch.diag_embed(moment.diagonal(dim1=-2, dim2=-1))
    held = moment.diagonal(dim1=-2, dim2=-1) if diagonal else moment
    trace = moment.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
    shrunk = (1 - shrinkage) * moment + shrinkage * trace / k * torch.eye(k, dtype=torch.float64)
    root = root_of(held, shrinkage=shrinkage)
    x = torch.randn(2, 4, k, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    scale = float(x.square().sum() * trace.max())
    torch.testing.assert_close(
        root.right(x) @ root.right(x).mT, x @ shrunk @ x.mT, rtol=0, atol=FLOOR * scale
    )
    left = root.left(x.mT)
    torch.testing.assert_close(left.mT @ left, x @ shrunk @ x.mT, rtol=0, atol=FLOOR * scale)


@few
@given(moments, st.sampled_from([0.0, 0.3]))
def test_whitening_is_undone_on_the_range_of_the_moment(moment: Tensor, shrinkage: float) -> None:
    k = moment.shape[-1]
    root = root_of(moment, shrinkage=shrinkage)
    x = torch.randn(2, 4, k, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    back = root.right_inverse(root.right(x))
    assert bool(torch.isfinite(back).all())
    # What is lost of x carries no weight: it is invisible in the metric.
    lost = root.right(x - back)
    assert float(lost.norm()) <= 1e-9 * float(root.right(x).norm())
    torch.testing.assert_close(root.right_inverse(root.right(back)), back, rtol=1e-8, atol=1e-10)
    twice = root.left_inverse(root.left(x.mT))
    torch.testing.assert_close(twice, back.mT, rtol=1e-9, atol=1e-12)
    if shrinkage and bool((moment.diagonal(dim1=-2, dim2=-1).sum(-1) > 0).all()):
        torch.testing.assert_close(back, x, rtol=1e-8, atol=1e-10)


def test_eigenvalues_that_rounding_made_negative_are_dropped() -> None:
    moment = _moment(6, 2, 0, seed=3)
    damaged = moment - 1e-12 * torch.eye(6, dtype=torch.float64)
    x = torch.randn(2, 4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    root = root_of(damaged)
    assert bool(torch.isfinite(root.right(x)).all())
    torch.testing.assert_close(
        root.right_inverse(root.right(x)),
        root_of(moment).right_inverse(root_of(moment).right(x)),
        rtol=1e-6,
        atol=1e-8,
    )


def test_a_dead_channel_does_not_come_back_from_whitening() -> None:
    moment = _moment(5, 9, 2, seed=0)
    back = root_of(moment).right_inverse(torch.ones(2, 1, 5, dtype=torch.float64))
    assert float(back[..., :2].abs().max()) <= 1e-12


def test_the_metrics_table_names_each_metric_as_it_calls_itself() -> None:
    assert {name: metric.name for name, metric in METRICS.items()} == {n: n for n in METRICS}


def _difference(spec: LayerSpec, seed: int = 0) -> Tensor:
    shape = (spec.groups, spec.out_features, spec.in_features)
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("groups", [1, 2])
def test_the_plain_metric_is_the_frobenius_norm(groups: int) -> None:
    spec = replace(SPEC, groups=groups)
    difference = _difference(spec)
    whitening = METRICS["plain"].whitening(random_moments(spec))
    assert torch.equal(whitening.whiten(difference), difference)
    assert float(whitening.loss(difference)) == pytest.approx(0.5 * float(difference.norm()) ** 2)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_diagonal_metric_scales_each_input_by_the_root_of_its_mean_size(groups: int) -> None:
    spec = replace(SPEC, groups=groups)
    moments, difference = random_moments(spec), _difference(spec)
    whitened = METRICS["diagonal"].whitening(moments).whiten(difference)
    expected = difference * moments.input_abs_mean.sqrt()[:, None]
    torch.testing.assert_close(whitened, expected, **FP64)


def _rows(spec: LayerSpec, examples: int = 6, positions: int = 4) -> Tensor:
    """(examples, positions, groups, n), with a mean."""
    generator = torch.Generator().manual_seed(2)
    shape = (examples, positions, spec.groups, spec.in_features)
    return 0.5 + torch.randn(shape, dtype=torch.float64, generator=generator)


def _moments_of(x: Tensor) -> LayerMoments:
    rows = x.flatten(0, 1)
    return LayerMoments(
        input=torch.einsum("tgi,tgj->gij", rows, rows) / len(x),
        input_mean=rows.mean(0),
        input_abs_mean=rows.abs().mean(0),
        rows=len(rows),
        examples=len(x),
    )


@pytest.mark.parametrize("groups", [1, 2])
def test_the_input_weighted_loss_is_the_mean_output_error_per_example(groups: int) -> None:
    spec = replace(SPEC, groups=groups)
    x, difference = _rows(spec), _difference(spec)
    loss = METRICS["input-weighted"].whitening(_moments_of(x)).loss(difference)
    error = torch.einsum("gmn,etgn->etgm", difference, x)
    assert float(loss) == pytest.approx(0.5 * float(error.square().sum()) / len(x), rel=FLOOR)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_centred_loss_is_what_remains_once_the_bias_has_moved(groups: int) -> None:
    spec = replace(SPEC, groups=groups)
    x, difference = _rows(spec), _difference(spec)
    metric, moments = METRICS["input-weighted"], _moments_of(x)
    centred = float(metric.whitening(moments, centred=True).loss(difference))
    shift = metric.error_mean(moments, difference)
    assert shift is not None
    error = torch.einsum("gmn,etgn->etgm", difference, x)

    def remaining(shift: Tensor) -> float:
        return 0.5 * float((error - shift).square().sum()) / len(x)

    assert centred == pytest.approx(remaining(shift), rel=FLOOR)
    assert centred < remaining(torch.zeros_like(shift))
    for seed in range(5):  # and no other move of the bias is better
        other = shift + 0.01 * torch.randn(
            shift.shape, dtype=shift.dtype, generator=torch.Generator().manual_seed(seed)
        )
        assert remaining(other) > centred


@pytest.mark.parametrize("metric", ["input-weighted", "two-sided"])
@few
@given(
    examples=st.integers(1, 20),
    positions=st.integers(1, 4),
    groups=st.integers(1, 2),
    seed=st.integers(0, 2**16),
    shrinkage=st.sampled_from([0.0, 0.2]),
)
def test_moving_the_bias_never_adds_loss(
    metric: str, examples: int, positions: int, groups: int, seed: int, shrinkage: float
) -> None:
    spec = replace(SPEC, groups=groups)
    moments = random_moments(spec, seed, examples=examples, positions=positions)
    difference = _difference(spec, seed)
    kept, moved = (
        float(
            METRICS[metric]
            .whitening(moments, shrinkage=shrinkage, centred=centred)
            .loss(difference)
        )
        for centred in (False, True)
    )
    # Sums in float32 over up to 80 rows: their rounding, against the loss itself
    assert 0 <= moved <= kept * (1 + 1e-5)


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_needs_no_more_than_it_says(metric: str) -> None:
    row = METRICS[metric]
    moments = replace(random_moments(SPEC), sensitivity=None)
    if row.needs_outputs:
        with pytest.raises(DataError, match="two-sided"):
            row.whitening(moments)
    else:
        assert bool(torch.isfinite(row.whitening(moments).whiten(_difference(SPEC))).all())


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("full_limit", [100, 6, 4], ids=["full", "diagonal input", "diagonal"])
@pytest.mark.parametrize("centred", [False, True], ids=["", "centred"])
def test_a_diagonal_moment_weighs_as_the_full_one_with_its_diagonal(
    metric: str, full_limit: int, *, centred: bool
) -> None:
    moments = random_moments(SPEC, full_limit=full_limit)
    sensitivity = moments.sensitivity
    assert sensitivity is not None
    mean = torch.zeros_like(moments.input_mean)  # a mean makes the centred moment full

    def full(moment: Tensor) -> Tensor:
        return torch.diag_embed(moment) if moment.dim() == 2 else moment

    apart = replace(moments, input_mean=mean, sensitivity=replace(sensitivity, cross=mean.double()))
    whole = replace(
        apart,
        input=full(apart.input),
        sensitivity=replace(
            sensitivity,
            input=full(sensitivity.input),
            output=full(sensitivity.output),
            cross=mean.double(),
        ),
    )
    difference = _difference(SPEC)
    losses = [
        float(METRICS[metric].whitening(m, shrinkage=0.1, centred=centred).loss(difference))
        for m in (apart, whole)
    ]
    assert losses[0] == pytest.approx(losses[1], rel=FLOOR)


@pytest.mark.parametrize("metric", METRICS)
def test_inputs_that_are_all_zero_weigh_nothing_and_break_nothing(metric: str) -> None:
    moments = random_moments(SPEC)
    sensitivity = moments.sensitivity
    assert sensitivity is not None
    silent = replace(
        moments,
        input=0 * moments.input,
        input_mean=0 * moments.input_mean,
        input_abs_mean=0 * moments.input_abs_mean,
        sensitivity=replace(
            sensitivity,
            input=0 * sensitivity.input,
            cross=0 * moments.input_mean.double(),
        ),
    )
    for centred in (False, True):
        whitening = METRICS[metric].whitening(silent, shrinkage=0.2, centred=centred)
        loss = float(whitening.loss(_difference(SPEC)))
        assert loss >= 0 if metric == "plain" else loss == 0
        back = whitening.input.right_inverse(whitening.input.right(_difference(SPEC)))
        assert bool(torch.isfinite(back).all())


LAYERS: dict[str, tuple[nn.Module, tuple[int, ...]]] = {
    "linear": (nn.Linear(7, 5), (7,)),
    "grouped convolution": (nn.Conv1d(6, 4, 3, groups=2), (6, 3)),
    "unequal groups": (nn.Conv1d(6, 4, 3, groups=2), (6, 3)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_where_the_kronecker_form_is_exact_the_two_sided_loss_is_the_divergence(name: str) -> None:
    """One layer, squared error, one row an example: the gradients are the probes themselves."""
    layer, shape = LAYERS[name]
    layer = layer.requires_grad_(requires_grad=False)
    generator = torch.Generator().manual_seed(0)
    examples, probes = 64, 40
    x = torch.randn(examples, *shape, generator=generator)
    if name == "unequal groups":
        x[:, :3] *= 4
    network = Function(layer, lambda layer, x: layer(x).flatten(1))
    options = ProfileOptions(objective="squared", probes=probes, bias_compensation=False)
    found = profile(network, [{"x": x}], options)
    (spec,) = (row.spec for row in found.layers)
    whitening = METRICS["two-sided"].whitening(found.moments["layer"])
    dense, weights = network(x), torch.ones(examples)
    for seed in range(5):
        difference = _difference(spec, seed)
        predicted = float(whitening.loss(difference))
        changed = layer.weight - difference.reshape(layer.weight.shape).float()
        other = torch.func.functional_call(network, {"layer.weight": changed}, (x,))
        actual = float(OBJECTIVES["squared"].divergence(dense, other, weights).mean())
        # Sample moments of 64 * 40 probes: each factor is off by sqrt(2 / 2560) = 3 %; five sigma
        assert predicted == pytest.approx(actual, rel=0.15)


def test_a_bias_that_the_output_ignores_moves_by_the_plain_mean() -> None:
    """Attention does not see the key's bias: nothing may be divided by its gradient's rounding."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(64, 5, generator=generator) + 1.0
    second = (rows.mT @ rows)[None] / 16
    noise = 1e-9 * torch.randn(1, 5, generator=generator)
    moments = LayerMoments(
        input=second,
        input_mean=rows.mean(0)[None],
        input_abs_mean=rows.abs().mean(0)[None],
        rows=64,
        examples=16,
        sensitivity=Sensitivity(second, torch.eye(3)[None] / 3, noise, torch.tensor([1e-12])),
    )
    difference = torch.randn(1, 3, 5, generator=generator)
    moved = METRICS["two-sided"].error_mean(moments, difference)
    assert moved is not None
    plain = METRICS["input-weighted"].error_mean(moments, difference)
    # the noise is 1e-9 of a mean of one, float32 adds its own rounding
    torch.testing.assert_close(moved, plain, rtol=1e-5, atol=1e-6)
