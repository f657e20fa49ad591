"""BLAST: its factors, its module in every form, and its fit in a layer's metric.

What every structure promises is in test_structure_contract.py, the plain fit in test_blast_fit.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from random_moments import random_moments
from torch import Tensor, nn
from torch.nn import functional
from transformers.pytorch_utils import Conv1D

from lrcompress.compression.replace import install_
from lrcompress.errors import FitError, PlanError
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.forms import forms_of, use_form_
from lrcompress.export.verify.result import BudgetFacts
from lrcompress.export.verify.verify import VerifyOptions, verify
from lrcompress.layers import LayerSpec, describe, weight_matrix
from lrcompress.metrics import METRICS, Whitening
from lrcompress.metrics.root import root_of
from lrcompress.structures import Blast, LowRank
from lrcompress.structures.blast_fit.block_metric import block_metric
from lrcompress.structures.blast_fit.coupled_rows import (
    Coupled,
    improve_rows_,
)
from lrcompress.structures.blast_fit.factors import BlastFactors
from lrcompress.structures.blast_module import BlastLinear

# Sums of a few hundred float64 products of order one.
FP64 = {"rtol": 1e-10, "atol": 1e-11}
EPS32 = torch.finfo(torch.float32).eps


def _spec(m: int, n: int) -> LayerSpec:
    return LayerSpec("l", "linear", m, n, 1, bias=False)


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _blocks(weight: Tensor, b_out: int, b_in: int) -> Tensor:
    """Split into blocks: (batch, m, n) -> (batch, b_out, b_in, p, q), padded with zeros."""
    m, n = weight.shape[1:]
    padded = functional.pad(weight, (0, -n % b_in, 0, -m % b_out))
    return padded.unflatten(2, (b_in, -1)).unflatten(1, (b_out, -1)).transpose(2, 3)


def _assembled(blocks: torch.Tensor) -> torch.Tensor:
    """The inverse of `_blocks`: (batch, b_out, b_in, p, q) -> (batch, b_out * p, b_in * q)."""
    batch, b_out, b_in, p, q = blocks.shape
    return blocks.transpose(2, 3).reshape(batch, b_out * p, b_in * q)


def _factors(b_out: int, b_in: int, p: int, q: int, rank: int, seed: int = 0) -> BlastFactors:
    return BlastFactors(
        _random(1, b_out, p, rank, seed=seed),
        _random(1, b_out, b_in, rank, seed=seed + 1),
        _random(1, b_in, q, rank, seed=seed + 2),
    )


def _moment(size: int, seed: int, decay: float = 4.0) -> Tensor:
    """(1, k, k) whose eigenvalues fall by e^decay, as those of activations do."""
    directions = torch.linalg.qr(_random(size, size, seed=seed)).Q
    values = torch.linspace(0, -decay, size, dtype=torch.float64).exp()
    return ((directions * values) @ directions.mT)[None]


def _whitening(m: int, n: int, seed: int = 0) -> Whitening:
    return Whitening(output=root_of(_moment(m, seed)), input=root_of(_moment(n, seed + 1)))


def _error(structure: Blast | LowRank, weight: Tensor, whitening: Whitening, **how: bool) -> float:
    spec = _spec(*weight.shape[1:])
    fitted = structure.fit(weight, whitening, spec, **how)
    lost = whitening.loss(weight - structure.dense(fitted, spec))
    return float((lost / whitening.loss(weight)).sqrt())


# --- factors ---


@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    m=st.integers(2, 11),
    n=st.integers(2, 11),
    b_out=st.integers(1, 4),
    b_in=st.integers(1, 4),
    rank=st.integers(1, 5),
    seed=st.integers(0, 2**16),
)
def test_factors_stand_for_their_blocks(
    m: int, n: int, b_out: int, b_in: int, rank: int, seed: int
) -> None:
    b_out, b_in = min(b_out, m), min(b_in, n)
    factors = _factors(b_out, b_in, -(-m // b_out), -(-n // b_in), rank, seed)
    dense = factors.dense(m, n)
    padded = factors.dense(b_out * factors.left.shape[2], b_in * factors.right.shape[2])
    blocks = _blocks(padded, b_out, b_in)
    for i in range(b_out):
        for j in range(b_in):
            block = factors.left[0, i] * factors.diag[0, i, j] @ factors.right[0, j].mT
            torch.testing.assert_close(blocks[0, i, j], block, **FP64)
    torch.testing.assert_close(_assembled(blocks)[:, :m, :n], dense, rtol=0, atol=0)
    again = _assembled(_blocks(dense, b_out, b_in))
    torch.testing.assert_close(again[:, :m, :n], dense, rtol=0, atol=0)
    torch.testing.assert_close(factors.transposed.dense(n, m).mT, dense, **FP64)
    torch.testing.assert_close(factors.balanced().dense(m, n), dense, **FP64)


def test_balanced_factors_are_of_one_size() -> None:
    factors = _factors(3, 2, 5, 4, 6)
    lopsided = BlastFactors(factors.left * 1e6, factors.diag * 1e-9, factors.right * 1e3)
    balanced = lopsided.balanced()
    ones = torch.ones(1, 6, dtype=torch.float64)
    torch.testing.assert_close(balanced.diag.square().mean((1, 2)), ones, **FP64)
    left, right = balanced.left.norm(dim=2), balanced.right.norm(dim=2)  # (1, b, r)
    torch.testing.assert_close(left, left[:, :1].expand_as(left), **FP64)
    torch.testing.assert_close(right, left[:, :1].expand_as(right), **FP64)


def test_columns_of_zeros_stay_finite_when_balanced() -> None:
    factors = _factors(2, 2, 3, 3, 4)
    factors.left[..., 1] = 0
    factors.diag[..., 2] = 0
    factors.right[..., 3] = 0
    balanced = factors.balanced()
    for part in (balanced.left, balanced.diag, balanced.right):
        assert bool(torch.isfinite(part).all())
    torch.testing.assert_close(balanced.dense(6, 6), factors.dense(6, 6), **FP64)


# --- the module ---


def _module(m: int, n: int, blocks: int, blocks_in: int = 0) -> tuple[nn.Module, LayerSpec]:
    torch.manual_seed(0)
    host = nn.Sequential(nn.Linear(n, m)).to(torch.float64).eval()
    (spec,) = describe(host).layers
    structure = Blast(3, blocks, blocks_in)
    factors = {  # not fitted: so few columns for so small a random weight would nearly cancel
        name: _random(*part.shape, seed=seed)
        for seed, (name, part) in enumerate(structure.empty_factors(spec).items())
    }
    install_(host, spec, structure, factors, host[0].bias.detach())
    return host, spec


@pytest.mark.parametrize(("m", "n", "blocks", "blocks_in"), [(8, 12, 4, 0), (7, 11, 2, 3)])
@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (2, 1, 5), (0,)], ids=str)
def test_every_form_computes_the_same(
    m: int, n: int, blocks: int, blocks_in: int, shape: tuple[int, ...]
) -> None:
    host, _ = _module(m, n, blocks, blocks_in)
    built = host[0]
    assert isinstance(built, BlastLinear)
    x = _random(*shape, n)
    wanted = nn.functional.linear(x, built.weight, built.bias)
    assert len(forms_of(built)) == 3
    for form in forms_of(built):
        use_form_(built, form)
        torch.testing.assert_close(built(x), wanted, **FP64)


@pytest.mark.parametrize("form", BlastLinear.FORMS)
@pytest.mark.parametrize(
    ("m", "n"),
    [pytest.param(16, 24, marks=pytest.mark.slow, id="even"), pytest.param(15, 22, id="padded")],
)
def test_every_form_is_exported_with_its_factors(form: str, m: int, n: int, tmp_path: Path) -> None:
    host, _ = _module(m, n, 4)
    host = host.float()
    use_form_(host[0], form)
    path, batch = tmp_path / "model.onnx", {"input": torch.randn(2, 5, n)}
    export_onnx(host, batch, path, ExportOptions(forms=None))
    held = sum(parameter.numel() for parameter in host.parameters())
    for allowed in (held, held - 1):
        options = VerifyOptions(budget=BudgetFacts(params=allowed))
        checks = {check.name: check for check in verify(path, host, batch, options).checks}
        assert checks["factors"].passed, checks["factors"].detail
        assert checks["parity"].passed, checks["parity"].detail
        assert checks["budget"].passed is (allowed == held), checks["budget"].detail


def test_weight_of_a_transposed_layer_is_the_matrix_that_it_multiplies_by() -> None:
    torch.manual_seed(0)
    host = nn.Sequential(Conv1D(6, 9)).to(torch.float64).eval()
    (spec,) = describe(host).layers
    structure = Blast(6, 2)
    x = _random(4, 9)
    wanted = host(x)
    factors = structure.fit(weight_matrix(host[0]), Whitening(), spec)
    install_(host, spec, structure, factors, host[0].bias.detach())
    torch.testing.assert_close(host(x), wanted, **FP64)


# --- sizes ---


@pytest.mark.parametrize(
    ("structure", "says"),
    [
        (Blast(0), "rank 0 "),
        (Blast(25), "rank 25 "),
        (Blast(4, 1), "blocks 1 "),
        (Blast(4, 25), "blocks 25 "),
        (Blast(4, 4, 41), "blocks_in 41 "),
    ],
    ids=str,
)
def test_sizes_that_the_layer_lacks_are_refused_by_name(structure: Blast, says: str) -> None:
    with pytest.raises(PlanError, match=rf"^l: .*{says}") as refusal:
        structure.check(_spec(24, 40))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("m", "n"), [(384, 384), (1536, 384), (100, 1000)])
def test_families_grow_and_stay_below_the_dense_weight(m: int, n: int) -> None:
    spec = _spec(m, n)
    families = Blast.families(spec)
    assert families
    for family in families:
        for structure in family:
            structure.check(spec)
        counts = [structure.weight_params(spec) for structure in family]
        assert counts == sorted(set(counts))
        assert counts[0] > 0.2 * spec.weight_params
        assert counts[-1] < spec.weight_params


def test_small_layers_have_no_families() -> None:
    assert Blast.families(_spec(10, 400)) == ()


# --- the metric of blocks ---


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    m=st.integers(4, 9),
    n=st.integers(4, 9),
    b_out=st.integers(2, 4),
    b_in=st.integers(2, 4),
    output=st.sampled_from(["full", "diagonal", "none"]),
    seed=st.integers(0, 2**16),
)
def test_block_metrics_keep_the_loss(
    m: int, n: int, b_out: int, b_in: int, output: str, seed: int
) -> None:
    """Of factors moved into the block metric, padding included."""
    moment = _moment(m, seed)
    roots = {"full": root_of(moment), "diagonal": root_of(moment.diagonal(dim1=1, dim2=2))}
    whitening = Whitening(input=root_of(_moment(n, seed + 1)))
    if output != "none":
        whitening = Whitening(output=roots[output], input=whitening.input)
    factors = _factors(b_out, b_in, -(-m // b_out), -(-n // b_in), 3, seed)
    outer = block_metric(whitening.output, 0, m, b_out, torch.float64)
    inner = block_metric(whitening.input, 0, n, b_in, torch.float64)
    rows, columns = b_out * factors.left.shape[2], b_in * factors.right.shape[2]
    inside = BlastFactors(
        outer.whiten(factors.left[0])[None], factors.diag, inner.whiten(factors.right[0])[None]
    )
    dense = factors.dense(rows, columns)
    dense[:, m:], dense[..., n:] = 0, 0  # what is padding weighs nothing outside
    kept = BlastFactors(factors.left.clone(), factors.diag, factors.right.clone())
    kept.left.view(1, rows, 3)[:, m:], kept.right.view(1, columns, 3)[:, n:] = 0, 0
    inside = BlastFactors(
        outer.whiten(kept.left[0])[None], kept.diag, inner.whiten(kept.right[0])[None]
    )
    nothing = torch.zeros(rows, columns, dtype=torch.float64)
    ours = Coupled.of(nothing, outer.coupling, inner.coupling).loss(inside)
    loss = float(whitening.loss(dense[:, :m, :n]))
    assert ours / 2 == pytest.approx(loss, rel=1e-8)
    torch.testing.assert_close(outer.unwhiten(inside.left[0]), kept.left[0], rtol=1e-7, atol=1e-8)


def test_a_dead_feature_leaves_finite_factors() -> None:
    moment = _moment(12, 0)
    moment[:, 5], moment[..., 5] = 0, 0
    singular = torch.ones(1, 12, 12, dtype=torch.float64)  # of rank one
    for gram in (moment, singular, torch.zeros_like(moment)):
        whitening = Whitening(output=root_of(gram), input=root_of(gram))
        fitted = Blast(3, 4).fit(_random(1, 12, 12), whitening, _spec(12, 12))
        assert all(bool(torch.isfinite(part).all()) for part in fitted.values())


def test_moments_that_are_not_finite_are_refused() -> None:
    gram = _moment(12, 0)
    root = root_of(gram)
    root.values[0, 0] = float("nan")
    with pytest.raises(FitError, match="not finite"):
        Blast(3, 4).fit(_random(1, 12, 12), Whitening(input=root), _spec(12, 12))


# --- half a sweep ---


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    coupled=st.sampled_from([(True, True), (True, False), (False, True), (False, False)]),
    with_diag=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_half_a_sweep_lowers_the_loss(
    coupled: tuple[bool, bool], seed: int, *, with_diag: bool
) -> None:
    (b_out, p), (b_in, q), rank = (3, 4), (2, 5), 3
    outer, inner = (
        block_metric(root_of(_moment(size, seed)), 0, size, blocks, torch.float64).coupling
        for size, blocks in ((b_out * p, b_out), (b_in * q, b_in))
    )
    outer, inner = outer if coupled[0] else None, inner if coupled[1] else None
    weight, factors = _random(b_out * p, b_in * q, seed=seed), _factors(b_out, b_in, p, q, rank)
    problem = Coupled.of(weight, outer, inner)
    before = problem.loss(factors)
    pull = _pull(weight, factors, outer, inner)
    residual = weight - factors.dense(b_out * p, b_in * q)[0]
    assert before == pytest.approx(float((pull * residual).sum()), rel=1e-10)
    improve_rows_(problem, factors, with_diag=with_diag)
    assert problem.loss(factors) < before
    if not with_diag:  # the last row of blocks is at its minimum, so its gradient is zero
        pull = _pull(weight, factors, outer, inner)
        row = (factors.right[0] * factors.diag[0, -1, :, None]).flatten(0, 1)
        gradient = pull[-p:] @ row
        assert float(gradient.abs().max()) <= 1e-9 * float((weight[-p:] @ row).abs().max())


def _pull(
    weight: torch.Tensor,
    factors: BlastFactors,
    outer: torch.Tensor | None,
    inner: torch.Tensor | None,
) -> torch.Tensor:
    """G E C, in full."""
    pull = weight - factors.dense(*weight.shape)[0]
    pull = pull if outer is None else outer @ pull
    return pull if inner is None else pull @ inner


# --- the fit ---


@pytest.mark.parametrize(("m", "n"), [(48, 96), (96, 48), (72, 70)])
@pytest.mark.parametrize("metric", ["input", "output", "both"])
def test_weighted_fit_loses_less_than_low_rank_and_than_plain(m: int, n: int, metric: str) -> None:
    """Of equal parameters, on a weight without structure: its spectrum falls as 1/k."""
    left, right = (torch.linalg.qr(_random(size, size, seed=size)).Q for size in (m, n))
    k = min(m, n)
    values = 1 / torch.arange(1, k + 1, dtype=torch.float64)
    weight = ((left[:, :k] * values) @ right[:, :k].mT)[None]
    whitening = _whitening(m, n)
    if metric != "both":
        kept = {metric: getattr(whitening, metric)}
        whitening = Whitening(**kept)
    blast = Blast(m * n // 2 // (m + n + 16), 4)
    low_rank = LowRank(m * n // 2 // (m + n))
    assert blast.weight_params(_spec(m, n)) <= low_rank.weight_params(_spec(m, n))
    ours = _error(blast, weight, whitening)
    assert ours < 0.97 * _error(low_rank, weight, whitening)
    plain = blast.fit(weight, Whitening(), _spec(m, n))
    lost = whitening.loss(weight - blast.dense(plain, _spec(m, n))) / whitening.loss(weight)
    assert ours < float(lost.sqrt())


def test_full_fit_loses_less_than_a_quick_one() -> None:
    weight, whitening = _random(1, 80, 64), _whitening(80, 64)
    quick = _error(Blast(16, 4), weight, whitening, quick=True)
    assert _error(Blast(16, 4), weight, whitening) < quick


def test_fit_is_the_same_every_time() -> None:
    weight, whitening, spec = _random(1, 80, 64), _whitening(80, 64), _spec(80, 64)
    first, second = (Blast(9, 4).fit(weight, whitening, spec, quick=True) for _ in range(2))
    for name, part in first.items():
        torch.testing.assert_close(second[name], part, rtol=0, atol=0)


@pytest.mark.parametrize("rank", [12, 20])
def test_fit_loses_no_more_than_its_start(rank: int) -> None:
    spec, weight, whitening = _spec(80, 64), _random(1, 80, 64), _whitening(80, 64)
    begun = Blast(12, 4).fit(weight, whitening, spec)
    before = float(whitening.loss(weight - Blast(12, 4).dense(begun, spec)))
    kept = {name: part.clone() for name, part in begun.items()}
    fitted = Blast(rank, 4).fit(weight, whitening, spec, quick=True, start=begun)
    after = float(whitening.loss(weight - Blast(rank, 4).dense(fitted, spec)))
    assert after <= before * (1 + 1e3 * EPS32)  # worked in float32
    for name, part in kept.items():
        torch.testing.assert_close(begun[name], part, rtol=0, atol=0)


def test_moments_of_uncoupled_blocks_leave_a_plain_fit() -> None:
    """Block-diagonal G and C: the fit of W is that of L^T W R, L and R their roots, unwhitened."""
    blocks, size = 3, 4
    parts = [torch.linalg.cholesky(_moment(size, seed)[0]) for seed in range(2 * blocks)]
    left, right = torch.block_diag(*parts[:blocks]), torch.block_diag(*parts[blocks:])
    whitening = Whitening(root_of((left @ left.mT)[None]), root_of((right @ right.mT)[None]))
    weight = _random(1, blocks * size, blocks * size)
    spec, structure = _spec(blocks * size, blocks * size), Blast(3, blocks)
    weighted = structure.dense(structure.fit(weight, whitening, spec), spec)
    plain = structure.dense(structure.fit(left.mT @ weight @ right, Whitening(), spec), spec)
    # the moments went through their eigenvectors, and 60 sweeps multiply what that rounds
    torch.testing.assert_close(left.mT @ weighted @ right, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("metric", METRICS)
def test_a_weight_that_is_blast_is_found(metric: str) -> None:
    factors = _factors(2, 2, 8, 8, 2)
    weight = factors.dense(16, 16)
    whitening = METRICS[metric].whitening(random_moments(_spec(16, 16)), shrinkage=0.3)
    assert _error(Blast(2, 2), weight, whitening) < 1e-2
