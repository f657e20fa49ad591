"""Claims of the rank measures, on spectra whose answer is known."""

from __future__ import annotations

from dataclasses import astuple
from math import exp, log

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrcompress.errors import FitError
from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.metrics.root import DiagonalRoot, FullRoot, IdentityRoot, Root, root_of
from lrcompress.profiling.spectrum import (
    RankMeasures,
    gram_of_shorter_side,
    loss_curve,
    marchenko_pastur_edge,
    measure,
    singular_values,
)
from lrcompress.structures import LowRank
from lrcompress.structures.large_svd import whitened_gram_by_blocks

SHAPES = [(60, 60), (120, 60), (40, 200)]

spectra = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=20).map(
    lambda values: torch.tensor(sorted(values, reverse=True), dtype=torch.float64)
)
few = settings(max_examples=40, deadline=None, derandomize=True)


def test_the_identity_uses_every_direction_alike_and_none_stands_out() -> None:
    measures = measure(torch.ones(50), 50, 50)
    assert measures.stable_rank == pytest.approx(50)
    assert measures.effective_rank == pytest.approx(50)
    assert measures.numerical_rank == 50
    assert (measures.e90, measures.e99) == (45, 50)
    assert measures.above_noise == 0


def test_a_matrix_of_rank_one_has_every_measure_one() -> None:
    spectrum = torch.zeros(30)
    spectrum[0] = 7.0
    assert astuple(measure(spectrum, 30, 40)) == pytest.approx((1, 1, 1, 1, 1, 1))


def test_a_zero_matrix_has_every_measure_zero() -> None:
    assert measure(torch.zeros(30), 30, 40) == RankMeasures(0.0, 0.0, 0, 0, 0, 0)


def test_a_geometric_spectrum_has_the_ranks_of_its_series() -> None:
    measures = measure(0.5 ** torch.arange(40, dtype=torch.float64), 40, 40)
    assert measures.stable_rank == pytest.approx(4 / 3)  # sum of 4^-i
    # shares 2^-(i+1): the entropy of a fair coin's waiting time, 2 log 2
    assert measures.effective_rank == pytest.approx(exp(2 * log(2)))
    assert measures.numerical_rank == 10  # 2^-9 > 1e-3 > 2^-10
    assert (measures.e90, measures.e99) == (2, 4)  # 1 - 4^-k


@few
@given(spectra, st.floats(1e-3, 1e3))
def test_measures_do_not_depend_on_scale(spectrum: Tensor, scale: float) -> None:
    one, other = measure(spectrum, 20, 30), measure(spectrum * scale, 20, 30)
    assert other.stable_rank == pytest.approx(one.stable_rank)
    assert other.effective_rank == pytest.approx(one.effective_rank)


@few
@given(spectra)
def test_measures_are_ordered(spectrum: Tensor) -> None:
    measures = measure(spectrum, 20, 30)
    rounding = 1 + 1e-12
    assert measures.stable_rank * rounding >= 1
    # s^2 / s_1^2 <= s / s_1 termwise; the exponential of entropy is at least 1 / max share
    assert measures.stable_rank <= measures.effective_rank * rounding
    assert measures.effective_rank <= len(spectrum) * rounding
    assert 1 <= measures.e90 <= measures.e99 <= len(spectrum)
    assert 1 <= measures.numerical_rank <= len(spectrum)


def _noise(m: int, n: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(m, n, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_noise_edge_is_that_of_the_noise(m: int, n: int) -> None:
    edges = [
        marchenko_pastur_edge(torch.linalg.svdvals(_noise(m, n, seed)), m, n) for seed in range(20)
    ]
    # The median of k = 40..60 singular values wavers by about 1/k from draw to draw, the mean of
    # 20 by a fifth of that; the lower of two middle values alone would be 1-2 % too low.
    assert sum(edges) / 20 == pytest.approx(m**0.5 + n**0.5, rel=0.01)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_noise_stays_below_its_edge(m: int, n: int) -> None:
    counts = [
        measure(torch.linalg.svdvals(_noise(m, n, seed)), m, n).above_noise for seed in range(20)
    ]
    # Tracy-Widom: the largest singular value passes the edge in about one draw of six, and the
    # edge's own estimate wavers: .14 to .25 a draw, measured over 300 draws.
    assert sum(counts) / 20 < 0.5


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("spikes", [1, 3])
def test_directions_beyond_the_noise_are_found(m: int, n: int, spikes: int) -> None:
    edge = m**0.5 + n**0.5
    found = []
    for seed in range(10):
        left = torch.linalg.qr(_noise(m, spikes, 100 + seed)).Q
        right = torch.linalg.qr(_noise(n, spikes, 200 + seed)).Q
        spectrum = torch.linalg.svdvals(_noise(m, n, seed) + 2 * edge * left @ right.mT)
        found.append(measure(spectrum, m, n).above_noise)
    assert min(found) >= spikes
    assert sum(found) / 10 < spikes + 0.5


def test_the_edge_does_not_depend_on_which_side_is_longer() -> None:
    spectrum = torch.linalg.svdvals(_noise(40, 200, 0))
    assert marchenko_pastur_edge(spectrum, 40, 200) == marchenko_pastur_edge(spectrum, 200, 40)


@few
@given(spectra)
def test_the_loss_curve_is_half_the_energy_left_out(spectrum: Tensor) -> None:
    curve = loss_curve(spectrum)
    left_out = [0.5 * float(spectrum[k:].square().sum()) for k in range(len(spectrum) + 1)]
    assert curve.tolist() == pytest.approx(left_out, rel=1e-12)
    assert float(curve[-1]) == 0.0
    assert bool((curve.diff() <= 0).all())


def test_small_tails_are_not_lost_beside_a_large_value() -> None:
    curve = loss_curve(torch.tensor([1e8, 1e-6], dtype=torch.float64))
    assert float(curve[1]) == pytest.approx(0.5e-12, rel=1e-12)


@pytest.mark.parametrize("shape", [(1, 70, 30), (2, 30, 70), (1, 40, 40)])
def test_singular_values_of_a_large_weight_are_those_of_its_svd(
    shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right to the root of float64's rounding, of the largest."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * torch.logspace(0, -4, shape[-1])
    monkeypatch.setattr("lrcompress.structures.large_svd.LARGEST_WHOLE_SVD", 300)
    found = singular_values(weight)
    wanted = torch.linalg.svdvals(weight.double())
    assert float((found - wanted).abs().max()) <= 1e-7 * float(wanted.max())


@pytest.mark.parametrize("shape", [(1, 70, 30), (2, 30, 70), (1, 40, 40)])
@pytest.mark.parametrize("rank", [1, 7, 30])
def test_a_large_weight_is_truncated_as_by_its_svd(
    shape: tuple[int, ...], rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator) * torch.logspace(0, -2, shape[-1])
    monkeypatch.setattr("lrcompress.structures.large_svd.LARGEST_WHOLE_SVD", 300)
    spec = LayerSpec("layer", "linear", *shape[1:], shape[0], bias=False)
    factors = LowRank(rank).fit(weight, Whitening(), spec)
    loss = LowRank(rank).loss(factors, weight, Whitening(), spec)
    double = weight.double()
    tails = torch.linalg.svdvals(double)[:, rank:]
    scale = float(0.5 * double.square().sum())
    assert loss == pytest.approx(float(0.5 * tails.square().sum()), rel=1e-6, abs=1e-12 * scale)
    dense = LowRank(rank).dense(factors, spec)
    assert float(0.5 * (double - dense).square().sum()) == pytest.approx(
        loss, rel=1e-6, abs=1e-12 * scale
    )
    left, right = (f.double() for f in (factors["left"], factors["right"]))
    sizes = left.square().sum(-2), right.square().sum(-1)  # the singular values, in both
    torch.testing.assert_close(*sizes, rtol=1e-4, atol=1e-5)


def test_a_large_weight_that_is_not_finite_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lrcompress.structures.large_svd.LARGEST_WHOLE_SVD", 300)
    weight = torch.full((1, 40, 40), torch.inf)
    spec = LayerSpec("layer", "linear", 40, 40, 1, bias=False)
    with pytest.raises(FitError, match="not finite"):
        LowRank(3).fit(weight, Whitening(), spec)


@pytest.mark.parametrize("shape", [(1, 70, 30), (2, 30, 70)])
@pytest.mark.parametrize("long", [IdentityRoot(), DiagonalRoot(torch.rand(1, 70).double())])
def test_the_gram_matrix_of_a_large_whitened_weight_is_that_of_the_whole(
    shape: tuple[int, ...], long: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lrcompress.structures.large_svd.LARGEST_WHOLE_SVD", 300)
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(shape, generator=generator)
    x = torch.randn(1, 50, 30, generator=generator, dtype=torch.float64)
    short = root_of(x.mT @ x)
    roots = (long, short) if shape[1] > shape[2] else (short, long)
    whitening = Whitening(*roots)
    found = whitened_gram_by_blocks(weight, whitening)
    assert found is not None
    torch.testing.assert_close(found, gram_of_shorter_side(whitening.whiten(weight)))
    mixing = Whitening(
        *(FullRoot(torch.eye(s).double()[None], torch.ones(1, s)) for s in shape[1:])
    )
    assert whitened_gram_by_blocks(weight, mixing) is None
