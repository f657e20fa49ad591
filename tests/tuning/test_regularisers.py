"""Claims of the regularisers, each against its closed form."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import networks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from lrcompress.compression.replace import install_
from lrcompress.errors import TuneError
from lrcompress.layers import describe, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.structures import CP, Blast, Kronecker, LowRank, Monarch, Structure, TensorTrain
from lrcompress.tuning.optimisers.factor_pairs import factor_pairs
from lrcompress.tuning.regularisers import (
    REGULARISERS,
    FactorNorm,
    MaskedRanks,
    NestedRankDropout,
    RankDropout,
    regularised_,
)

FP64 = {"rtol": 1e-10, "atol": 1e-11}  # sums of a few hundred float64 products of order one


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def layer_of(structure: Structure, dense: nn.Module) -> nn.Module:
    """In float64, in a network of its own."""
    module = nn.Sequential(dense.double())
    (spec,) = describe(module).layers
    factors = structure.fit(weight_matrix(dense), Whitening(), spec)
    bias = getattr(dense, "bias", None)
    install_(module, spec, structure, factors, None if bias is None else bias.detach())
    return module


def low_rank(m: int, n: int, rank: int) -> nn.Module:
    torch.manual_seed(m + n)
    return layer_of(LowRank(rank), nn.Linear(n, m, bias=False))


# --- the norm of factors -------------------------------------------------------------------------


def norm_of(module: nn.Module) -> float:
    penalty = FactorNorm(1.0).penalty(factor_pairs(module))
    assert penalty is not None
    return float(penalty)


@settings(max_examples=25, deadline=None)
@given(m=st.integers(2, 9), n=st.integers(2, 9), data=st.data(), seed=st.integers(0, 99))
def test_the_norm_of_factors_is_least_at_balance_where_it_is_nuclear(
    m: int, n: int, data: st.DataObject, seed: int
) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    module = low_rank(m, n, rank)  # fitted factors are balanced
    weight = module[0].weight.detach()
    nuclear = float(torch.linalg.matrix_norm(weight, "nuc"))
    assert norm_of(module) == pytest.approx(nuclear, rel=1e-9)
    change = gaussian(rank, rank, seed=seed) + 3 * torch.eye(rank, dtype=torch.float64)
    with torch.no_grad():
        up, down = module[0].up.weight, module[0].down.weight
        up.copy_(up @ change)
        down.copy_(torch.linalg.solve(change, down))
    assert norm_of(module) >= nuclear * (1 - 1e-9)


def test_its_gradient_is_decay_of_the_factors() -> None:
    module = low_rank(5, 7, 3)
    with regularised_(module, [FactorNorm(0.2)]) as held:
        penalty = held()
        assert penalty is not None
        penalty.backward()
    for parameter in module.parameters():
        torch.testing.assert_close(parameter.grad, 0.2 * parameter.detach(), **FP64)


both_masks = pytest.mark.parametrize(
    "masks", [RankDropout(0.3), NestedRankDropout(0.4)], ids=["ranks", "nested"]
)


# --- dropout of ranks ----------------------------------------------------------------------------


def outcomes(masks: MaskedRanks, rank: int) -> Iterator[tuple[float, Tensor]]:
    """Every mask and its probability."""
    if isinstance(masks, RankDropout):
        for kept in product((0.0, 1.0), repeat=rank):
            z = torch.tensor(kept, dtype=torch.float64)
            count = int(z.sum())
            yield masks.rate ** (rank - count) * (1 - masks.rate) ** count, z / (1 - masks.rate)
        return
    for first in range(1, rank + 1):
        z = (torch.arange(rank) < first).double()
        yield masks.rate / rank + (1 - masks.rate) * (first == rank), z


def moments(masks: MaskedRanks, rank: int) -> tuple[Tensor, Tensor]:
    """The mean and the covariance of z in closed form: (rank,) and (rank, rank)."""
    if isinstance(masks, RankDropout):
        ones = torch.ones(rank, dtype=torch.float64)
        return ones, masks.rate / (1 - masks.rate) * torch.diag(ones)
    # with probability `rate` only the first b ranks stay, b uniform in 1 ... rank
    mean = 1 - masks.rate * torch.arange(rank, dtype=torch.float64) / rank
    return mean, torch.minimum(mean[:, None], mean) - torch.outer(mean, mean)


def expected_squared_error(
    masks: MaskedRanks, left: Tensor, right: Tensor, inputs: Tensor, targets: Tensor
) -> Tensor:
    """Return E ||targets - L diag(z) R^T inputs||_F^2, a scalar.

    left: (m, r)  right: (n, r)  inputs: (n, rows)  targets: (m, rows)
    """
    mean, covariance = moments(masks, left.shape[-1])
    codes = right.mT @ inputs  # (r, rows)
    rest = targets - left @ (mean.unsqueeze(-1) * codes)
    return rest.square().sum() + (covariance * (left.mT @ left) * (codes @ codes.mT)).sum()


class Fixed(MaskedRanks):
    """One mask, given in place of a draw."""

    def __init__(self, z: Tensor) -> None:
        super().__init__(0.5)
        self.z = z

    def draw(self, batch: int, rank: int) -> Tensor:
        return self.z.expand(batch, rank)


@pytest.mark.parametrize("rank", [1, 2, 4])
@both_masks
def test_the_expected_loss_of_a_layer_is_its_closed_form(masks: MaskedRanks, rank: int) -> None:
    """Over every mask by its probability, through the layer's own forward."""
    module, x, y = low_rank(5, 6, rank), gaussian(8, 6), gaussian(8, 5, seed=1)
    total, expected = 0.0, 0.0
    for probability, z in outcomes(masks, rank):
        with regularised_(module, [Fixed(z)]):
            expected += probability * float((module(x) - y).square().sum().detach())
        total += probability
    assert total == pytest.approx(1, abs=1e-12)
    left, right = module[0].up.weight.detach(), module[0].down.weight.detach().mT
    closed = expected_squared_error(masks, left, right, x.mT, y.mT)
    assert float(closed) == pytest.approx(expected, rel=1e-10)


def test_the_closed_form_of_independent_masks_is_the_published_one() -> None:
    masks, left, right = RankDropout(0.3), gaussian(5, 3), gaussian(6, 3, seed=1)
    x, y = gaussian(6, 8, seed=2), gaussian(5, 8, seed=3)
    codes = right.mT @ x
    extra = 0.3 / 0.7 * (left.square().sum(0) * codes.square().sum(1)).sum()
    plain = (y - left @ codes).square().sum()
    torch.testing.assert_close(
        expected_squared_error(masks, left, right, x, y), plain + extra, **FP64
    )


@both_masks
def test_draws_have_the_mean_and_covariance_that_are_told(masks: MaskedRanks) -> None:
    rank, count = 4, 40_000
    probabilities, every = zip(*outcomes(masks, rank), strict=True)
    weights, stacked = torch.tensor(probabilities, dtype=torch.float64), torch.stack(every)
    mean = weights @ stacked
    closed_mean, closed_spread = moments(masks, rank)
    torch.testing.assert_close(closed_mean, mean, **FP64)
    spread = (stacked - mean).mT @ (weights.unsqueeze(-1) * (stacked - mean))
    torch.testing.assert_close(closed_spread, spread, **FP64)
    masks.generator = torch.Generator().manual_seed(0)
    drawn = masks.draw(count, rank).double()
    # six standard errors, of entries that are 2 at most
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=6 * 2 / count**0.5)
    torch.testing.assert_close(torch.cov(drawn.mT), spread, rtol=0, atol=6 * 4 / count**0.5)


def test_nested_ranks_that_are_learnt_are_ordered() -> None:
    """Its least expected loss keeps the leading singular values first, so slices are truncations:
    from any factors of a matrix, descent on the closed form ends at its SVD in order."""
    u, v = (torch.linalg.qr(gaussian(6, 3, seed=k)).Q for k in range(2))
    matrix = (u * torch.tensor([3.0, 2.0, 1.0]).double()) @ v.mT
    left, right = (gaussian(6, 3, seed=k).requires_grad_() for k in (4, 5))
    eye, masks = torch.eye(6, dtype=torch.float64), NestedRankDropout(0.9)
    optimiser = torch.optim.LBFGS(
        [left, right],
        max_iter=2000,
        tolerance_grad=1e-9,
        tolerance_change=0,
        line_search_fn="strong_wolfe",
    )

    def closure() -> float:
        optimiser.zero_grad()
        loss = expected_squared_error(masks, left, right, eye, matrix)
        loss.backward()
        return float(loss)

    optimiser.step(closure)
    for rank in (1, 2, 3):
        sliced = left[:, :rank] @ right[:, :rank].mT
        best = (u[:, :rank] * torch.tensor([3.0, 2.0, 1.0])[:rank]) @ v[:, :rank].mT
        # descent ends at gradients below 1e-9, three orders below the tolerance
        torch.testing.assert_close(sliced, best, rtol=0, atol=1e-6)


# --- every structure with two factors ------------------------------------------------------------

STRUCTURED = {
    "linear": (LowRank(3), lambda: nn.Linear(7, 6)),
    "embedding": (LowRank(3), lambda: nn.Embedding(9, 6)),
    "conv2d": (LowRank(3), lambda: nn.Conv2d(4, 6, 3)),
    "grouped": (LowRank(2), lambda: nn.Conv2d(4, 6, 3, groups=2)),
    "blast": (Blast(3, 2, 2), lambda: nn.Linear(6, 8)),
    "monarch": (Monarch(2, 2), lambda: nn.Linear(6, 8)),
    "kronecker": (Kronecker(2), lambda: nn.Linear(6, 8)),
    "cp": (CP(4), lambda: nn.Conv2d(4, 6, 3)),
    "tensor train": (TensorTrain(3, cores=2), lambda: nn.Embedding(9, 8)),
}


def example(dense: nn.Module) -> Tensor:
    if isinstance(dense, nn.Embedding):
        return torch.arange(9)
    return gaussian(3, 4, 8, 8) if isinstance(dense, nn.Conv2d) else gaussian(5, dense.in_features)


@pytest.mark.parametrize("name", STRUCTURED)
def test_masks_of_ones_change_nothing_and_of_zeros_leave_the_bias(name: str) -> None:
    structure, make = STRUCTURED[name]
    torch.manual_seed(0)
    dense = make()
    module, x = layer_of(structure, dense), example(dense)
    with torch.no_grad():
        expected = module(x)
    ones = torch.ones((), dtype=torch.float64)
    with regularised_(module, [Fixed(ones)]):
        torch.testing.assert_close(module(x).detach(), expected, **FP64)
    with regularised_(module, [Fixed(0 * ones)]):
        out = module(x).detach()
        with torch.no_grad():  # a measurement sees the whole weight
            torch.testing.assert_close(module(x), expected, **FP64)
    axes = [d for d in range(out.dim()) if d != (1 if out.dim() == 4 else out.dim() - 1)]
    torch.testing.assert_close(out, out.mean(axes, keepdim=True).expand_as(out), **FP64)


@pytest.mark.parametrize("name", REGULARISERS)
def test_what_is_attached_is_taken_out_again(name: str) -> None:
    module = low_rank(5, 6, 3)
    before = [(key, id(p)) for key, p in module.named_parameters()]
    types = [type(m) for m in module.modules()]
    values = {key: value.clone() for key, value in module.state_dict().items()}
    with regularised_(module, [REGULARISERS[name]()]):
        module(gaussian(2, 6)).sum().backward()
    with pytest.raises(ZeroDivisionError), regularised_(module, [REGULARISERS[name]()]):
        raise ZeroDivisionError
    assert [(key, id(p)) for key, p in module.named_parameters()] == before
    assert [type(m) for m in module.modules()] == types
    assert all(torch.equal(module.state_dict()[key], value) for key, value in values.items())
    assert all(p.grad is not None for p in module.parameters())


def test_masks_follow_the_generator_that_is_given() -> None:
    module, x = low_rank(5, 6, 3), gaussian(2, 6)

    def drawn(seed: int) -> list[Tensor]:
        masks = RankDropout(0.5, torch.Generator().manual_seed(seed))
        with regularised_(module, [masks]):
            return [module(x).detach() for _ in range(6)]

    one, same, other = drawn(1), drawn(1), drawn(2)
    assert all(map(torch.equal, one, same))
    assert not all(map(torch.equal, one, other))


def test_what_cannot_be_regularised_is_refused() -> None:
    with (
        pytest.raises(TuneError, match="no layer has two trainable factors"),
        regularised_(networks.Mlp(), [FactorNorm()]),
    ):
        pass
    for rate in (0.0, 1.0):
        with pytest.raises(TuneError, match="not between 0 and 1"):
            RankDropout(rate)
    with pytest.raises(TuneError, match="not above 0"):
        FactorNorm(0.0)
