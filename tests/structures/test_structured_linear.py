"""Structures of linear layers beyond low rank: what they recover, what they lose, what they export.

What every structure promises is in test_structure_contract.py.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
from random_moments import random_moments
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrcompress.compression.replace import install_
from lrcompress.errors import FitError
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.verify.verify import VerifyOptions, verify
from lrcompress.layers import LayerSpec, describe, weight_matrix
from lrcompress.metrics import METRICS, Whitening
from lrcompress.structures import (
    BlockDiagonal,
    Factors,
    Interpolative,
    Kronecker,
    LowRank,
    Monarch,
    Structure,
    block_diagonal,
    monarch,
)
from lrcompress.structures.block_rows import Blocked, Parts
from lrcompress.structures.kronecker_fit import KroneckerFit, rearranged
from lrcompress.structures.solve import cholesky, pcg, solve_spd

SHAPES = [(24, 24), (40, 16), (16, 40)]


def _spec(m: int, n: int) -> LayerSpec:
    return LayerSpec("l", "linear", m, n, 1, bias=True)


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _whitening(metric: str, spec: LayerSpec) -> Whitening:
    return METRICS[metric].whitening(random_moments(spec), shrinkage=0.05)


def _loss(structure: Structure, factors: Factors, weight: Tensor, whitening: Whitening) -> float:
    dense = structure.dense(factors, _spec(*weight.shape[1:]))
    return float(whitening.loss(weight - dense))


every_shape = pytest.mark.parametrize(("m", "n"), SHAPES)
every_metric = pytest.mark.parametrize("metric", METRICS)
fitted = pytest.mark.parametrize(
    "structure",
    [
        Monarch(2, 4),
        Monarch(3, 3),
        BlockDiagonal(0, 4),
        BlockDiagonal(3, 4),
        BlockDiagonal(2, 7),
        BlockDiagonal(4, 4, chunk=4),
        Kronecker(1),
        Kronecker(3),
        Kronecker(2, 2, 8),
    ],
    ids=str,
)


# ---- fitted --------------------------------------------------------------------------------


@every_shape
@every_metric
@fitted
def test_a_weight_of_the_structure_is_recovered(
    structure: Structure, metric: str, m: int, n: int
) -> None:
    spec = _spec(m, n)
    factors = {
        name: _random(*empty.shape, seed=seed)
        for seed, (name, empty) in enumerate(structure.empty_factors(spec).items())
    }
    weight, whitening = structure.dense(factors, spec), _whitening(metric, spec)
    found = structure.fit(weight, whitening, spec)
    # Alternation converges linearly: what is left is small, not rounding
    assert _loss(structure, found, weight, whitening) <= 1e-6 * float(whitening.loss(weight))


@every_shape
@fitted
def test_the_metric_is_what_is_fitted_in(structure: Structure, m: int, n: int) -> None:
    weight, spec = _random(1, m, n), _spec(m, n)
    whitening = _whitening("two-sided", spec)
    plain = structure.fit(weight, Whitening(), spec)
    weighted = structure.fit(weight, whitening, spec)
    here = _loss(structure, weighted, weight, whitening)
    assert here < _loss(structure, plain, weight, whitening)
    # and the other way round, where the plain fit is the best one
    there = _loss(structure, plain, weight, Whitening())
    assert there <= _loss(structure, weighted, weight, Whitening())


@every_shape
@fitted
def test_a_start_is_never_lost(structure: Structure, m: int, n: int) -> None:
    weight, spec = _random(1, m, n), _spec(m, n)
    whitening = _whitening("two-sided", spec)
    start = structure.fit(weight, whitening, spec)
    again = structure.fit(weight, whitening, spec, quick=True, start=start)
    before, after = (_loss(structure, x, weight, whitening) for x in (start, again))
    assert after <= before * (1 + 1e-12)


@every_shape
@fitted
def test_features_that_nothing_depends_on_do_no_harm(structure: Structure, m: int, n: int) -> None:
    """Dead inputs, outputs without effect, fewer tokens than features, no shrinkage."""
    weight, spec = _random(1, m, n), _spec(m, n)
    moments = random_moments(spec, examples=3)
    moments.input[:, 0] = moments.input[:, :, 0] = 0
    whitening = METRICS["input-weighted"].whitening(moments)
    factors = structure.fit(weight, whitening, spec)
    assert all(bool(torch.isfinite(x).all()) for x in factors.values())
    plain = structure.fit(weight, Whitening(), spec)
    limit = _loss(structure, plain, weight, whitening)
    assert _loss(structure, factors, weight, whitening) <= limit * (1 + 1e-9)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@fitted
def test_a_weight_that_is_not_finite_is_never_fitted(structure: Structure, value: float) -> None:
    weight = _random(1, 16, 24)
    weight[0, 3, 5] = value
    for whitening in (Whitening(), _whitening("two-sided", _spec(16, 24))):
        with pytest.raises(FitError, match="not finite"):
            structure.fit(weight, whitening, _spec(16, 24))


@every_shape
@pytest.mark.parametrize("metric", ["input-weighted", "two-sided"])
@pytest.mark.parametrize("structure", [Monarch(2, 4), BlockDiagonal(3, 4)], ids=str)
def test_no_sweep_loses_ground(
    structure: Monarch | BlockDiagonal, metric: str, m: int, n: int
) -> None:
    weight, spec = _random(1, m, n), _spec(m, n)
    problem = Blocked.of(weight, _whitening(metric, spec), 4)
    form = (monarch if isinstance(structure, Monarch) else block_diagonal).FORM
    losses = []
    parts: Parts = tuple(_random(*shape) for shape in _part_shapes(structure, m, n))
    for _ in range(12):
        parts, loss = form.sweep(problem, parts)
        losses.append(loss)
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(losses))


def _part_shapes(structure: Monarch | BlockDiagonal, m: int, n: int) -> list[tuple[int, ...]]:
    p, q, r = m // 4, n // 4, structure.rank
    if isinstance(structure, Monarch):
        return [(4, 4, p, r), (4, 4, r, q)]
    return [(m, r), (r, n), (4, p, q)]


@every_shape
def test_the_loss_that_a_sweep_reports_is_the_loss(m: int, n: int) -> None:
    weight, spec = _random(1, m, n), _spec(m, n)
    whitening, structure = _whitening("two-sided", spec), Monarch(2, 4)
    factors = structure.fit(weight, whitening, spec)
    problem = Blocked.of(weight, whitening, 4)
    parts = monarch._scaled(problem, factors)
    found, loss = monarch.FORM.sweep(problem, parts)
    dense = structure.dense(monarch._unscaled(problem, found), spec)
    assert loss == pytest.approx(float(whitening.loss(weight - dense)), rel=1e-9)


@every_shape
def test_diagonal_metric_needs_no_sweeps(m: int, n: int) -> None:
    """Each block's own SVD after scaling: no alternation lowers its loss."""
    weight, spec = _random(1, m, n), _spec(m, n)
    whitening = _whitening("diagonal", spec)
    structure, tail = Monarch(2, 4), 0.0
    for row in whitening.whiten(weight)[0].chunk(4, 0):
        for cell in row.chunk(4, 1):
            tail += 0.5 * float(torch.linalg.svdvals(cell)[2:].square().sum())
    found = _loss(structure, structure.fit(weight, whitening, spec), weight, whitening)
    assert found == pytest.approx(tail, rel=1e-9)


@every_shape
def test_plain_kronecker_is_the_svd_of_the_rearranged_weight(m: int, n: int) -> None:
    weight, spec, structure = _random(1, m, n), _spec(m, n), Kronecker(3)
    values = torch.linalg.svdvals(rearranged(weight[0], structure.split(spec)))
    found = _loss(structure, structure.fit(weight, Whitening(), spec), weight, Whitening())
    assert found == pytest.approx(0.5 * float(values[3:].square().sum()), rel=1e-9)


def test_kronecker_sweeps_never_lose_ground() -> None:
    weight, spec, structure = _random(1, 24, 24), _spec(24, 24), Kronecker(3)
    whitening = _whitening("two-sided", spec)
    problem = KroneckerFit.of(weight[0], whitening, structure.split(spec))
    pair, losses = problem.plain_terms(problem.weight, 3), []
    for _ in range(6):
        pair = problem.sweep(pair)
        losses.append(problem.loss(pair))
    assert all(after <= before * (1 + 1e-12) for before, after in pairwise(losses))


# ---- systems -------------------------------------------------------------------------------


def test_a_damped_step_never_raises_the_quadratic() -> None:
    basis = _random(3, 6, 4)
    gram, rhs, start = basis @ basis.mT, basis @ _random(3, 4, 2), _random(3, 6, 2, seed=1)

    def quadratic(x: Tensor) -> float:
        return float((0.5 * x * (gram @ x) - rhs * x).sum())

    found = solve_spd(gram, rhs, start)
    assert quadratic(found) <= quadratic(start)
    torch.testing.assert_close(gram @ found, rhs, rtol=1e-6, atol=1e-8)  # singular, but solvable


def test_a_matrix_that_is_not_positive_still_has_a_factor() -> None:
    matrices = torch.stack([torch.eye(3), -torch.eye(3), torch.zeros(3, 3)]).double()
    roots = cholesky(matrices)
    torch.testing.assert_close(roots[0], torch.eye(3).double(), rtol=0, atol=1e-6)
    assert bool((roots.diagonal(dim1=-2, dim2=-1) > 0).all())
    with pytest.raises(FitError, match="not finite"):
        cholesky(matrices * torch.nan)


def test_separate_systems_are_solved_separately() -> None:
    basis = _random(3, 8, 5)
    scales = torch.tensor([1.0, 1e-6, 1e6], dtype=torch.float64)[:, None, None]
    gram, wanted = scales * (basis.mT @ basis), _random(3, 5, 1, seed=1)
    found = pcg(
        lambda x: gram @ x,
        gram @ wanted,
        lambda x: x / gram.diagonal(dim1=-2, dim2=-1).unsqueeze(-1),
        torch.zeros_like(wanted),
        20,
        batch_axes=1,
        tolerance=1e-14,
    )
    torch.testing.assert_close(found, wanted, rtol=1e-8, atol=1e-8)


# ---- exported ------------------------------------------------------------------------------


class Pair(nn.Module):
    """A Linear and a GPT-2 Conv1D on sequences, with something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 40), Conv1D(16, 40)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(features)))
        return out


@pytest.mark.parametrize(
    "structure",
    [
        Interpolative(8),
        Interpolative(6, chunk=1),
        Monarch(2, 4),
        Monarch(2, 3),
        BlockDiagonal(3, 4),
        pytest.param(BlockDiagonal(0, 3), marks=pytest.mark.slow),
        pytest.param(BlockDiagonal(4, 4, chunk=4), marks=pytest.mark.slow),
        pytest.param(Kronecker(4), marks=pytest.mark.slow),
        Kronecker(2, 3, 5),
    ],
    ids=str,
)
def test_a_file_computes_the_same_from_the_factors(structure: Structure, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Pair().eval()
    for spec in describe(module).layers:
        layer = module.get_submodule(spec.name)
        factors = structure.fit(weight_matrix(layer).detach(), Whitening(), spec)
        install_(module, spec, structure, factors, layer.bias.detach())
    batch = {"features": torch.randn(2, 5, 16)}
    export_onnx(module, batch, tmp_path / "model.onnx")
    # On other batches and lengths too. A fit of noise has blocks and a low-rank part that cancel to
    # a tenth of themselves, so that rounding is ten times float32's
    options = VerifyOptions(tolerance=4e-5)
    report = verify(tmp_path / "model.onnx", module, batch, options)
    assert report.ok, report.failed
    assert report["factors"].numbers["layers"] == 2
    assert report["factors"].numbers["folded"] == ()


# ---- interpolative -------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("chunk", [1, 4, 8])
def test_an_interpolated_weight_is_the_low_rank_one(m: int, n: int, chunk: int) -> None:
    weight, spec = _random(1, m, n), _spec(m, n)
    interpolative, low_rank = Interpolative(8, chunk), LowRank(8)
    factors = interpolative.fit(weight, Whitening(), spec)
    wanted = low_rank.dense(low_rank.fit(weight, Whitening(), spec), spec)
    torch.testing.assert_close(interpolative.dense(factors, spec), wanted, rtol=0, atol=1e-11)
    assert interpolative.weight_params(spec) == low_rank.weight_params(spec) - 8**2


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_features_are_mixed_by_small_numbers(m: int, n: int) -> None:
    """Greedy volume bounds the entries of T: float32 loses no digits where features cancel."""
    factors = Interpolative(8, 1).fit(_random(1, m, n), Whitening(), _spec(m, n))
    assert float(factors["mix"].abs().max()) < 4


def test_chunks_that_cannot_span_the_weight_are_refused() -> None:
    weight, spec = _random(1, 16, 16), _spec(16, 16)
    weight[..., torch.arange(16) % 4 > 0] = 0  # one feature in every chunk of four
    assert Interpolative(4, 1).fit(weight, Whitening(), spec)
    with pytest.raises(FitError, match="chunk=1"):
        Interpolative(4, 4).fit(weight, Whitening(), spec)
