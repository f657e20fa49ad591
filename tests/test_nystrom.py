"""Claims of the Nyström start."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.errors import TuneError
from lrcompress.tuning.nystrom import nystrom


def of_rank(rank: int, m: int, n: int, seed: int, groups: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.randn(groups, side, rank, generator=generator, dtype=torch.float64) for side in (m, n)
    )
    return left @ right.mT


@settings(max_examples=40, deadline=None)
@given(
    m=st.integers(2, 24),
    n=st.integers(2, 24),
    data=st.data(),
    seed=st.integers(0, 999),
    scaling=st.sampled_from([1.0, 0.25, 3.0]),
)
def test_a_weight_of_the_rank_or_less_is_met_exactly(
    m: int, n: int, data: st.DataObject, seed: int, scaling: float
) -> None:
    rank = data.draw(st.integers(1, min(m, n)))
    true_rank = data.draw(st.integers(0, rank))
    weight = of_rank(true_rank, m, n, seed, groups=2)
    b, a = nystrom(weight, rank, scaling)
    assert b.shape == (2, m, rank)
    assert a.shape == (2, rank, n)
    # Rounding times the condition of two Gaussian sketches, which of sizes up to 24 is up to 1e4,
    # squared where no oversampling is left
    scale = float(weight.abs().max()) + 1e-300
    torch.testing.assert_close(scaling * b @ a, weight, rtol=0, atol=1e-6 * scale)


def test_the_first_rows_and_columns_would_not_do() -> None:
    weight = torch.zeros(1, 8, 8, dtype=torch.float64)
    weight[0, 5:, 5:] = torch.eye(3)
    b, a = nystrom(weight, 3)
    torch.testing.assert_close(b @ a, weight, rtol=0, atol=1e-10)


def test_another_weight_is_met_nearly_as_well_as_by_its_svd() -> None:
    generator = torch.Generator().manual_seed(3)
    decay = torch.arange(1, 61, dtype=torch.float64) ** -2.0
    u, v = (
        torch.linalg.qr(torch.randn(60, 60, generator=generator, dtype=torch.float64)).Q
        for _ in range(2)
    )
    weight = ((u * decay) @ v.mT)[None]
    b, a = nystrom(weight, 12)
    best = float(decay[12:].norm())
    assert float((b @ a - weight).norm()) < 6 * best
    assert float(b.norm() / a.norm()) == pytest.approx(1, abs=0.5)


def test_its_products_are_a_fraction_of_an_svd() -> None:
    """Which takes 4 m n min(m, n) operations and more (Golub and Van Loan, section 8.6)."""
    weight, rank = of_rank(16, 300, 300, 0), 16
    with FlopCounterMode(display=False) as counted:
        nystrom(weight, rank)
    assert counted.get_total_flops() < 4 * 300**3 / 10


@pytest.mark.parametrize("rank", [0, 5])
def test_ranks_that_no_factor_has_are_refused(rank: int) -> None:
    with pytest.raises(TuneError, match=f"rank {rank} is not between 1 and 4"):
        nystrom(torch.ones(1, 4, 6), rank)
    with pytest.raises(TuneError, match="not finite"):
        nystrom(torch.full((1, 4, 6), torch.nan), 2)
