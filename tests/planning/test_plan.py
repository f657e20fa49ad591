"""Claims of curves, totals, patterns and of the plan as a whole."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from synthetic import layer, profile, random_profile, spec

from lrcompress.errors import BudgetError, PlanError
from lrcompress.layers import LeftAlone
from lrcompress.planning.allocators import ALLOCATORS
from lrcompress.planning.budget import UNITS, Budget
from lrcompress.planning.choices import layer_choices
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.structures import Dense, LowRank

SHAPES = [(24, 24), (48, 24), (24, 48), (32, 16)]


@pytest.fixture
def made() -> Profile:
    return random_profile(0, SHAPES, fixed_params=500)


# Curves


@given(st.integers(2, 40), st.integers(2, 40), st.integers(1, 8), st.integers(1, 8))
def test_choices_lie_below_break_even_and_lose_less_with_rank(
    m: int, n: int, multiple: int, least: int
) -> None:
    profiled = layer(spec("x", m, n), np.random.default_rng(0))
    *low_ranks, dense = layer_choices(
        profiled, "two-sided", multiple_of=multiple, min_rank=least, bytes_per_param=2
    )
    spectrum = profiled.spectra["two-sided"]
    for choice in low_ranks:
        assert isinstance(choice.structure, LowRank)
        rank = choice.structure.rank
        assert rank % multiple == 0
        assert rank >= least
        assert choice.params == rank * (m + n) < m * n
        assert choice.bytes == 2 * choice.params
        # Two float64 sums of at most 40 terms.
        assert choice.loss == pytest.approx(float(0.5 * spectrum[rank:].square().sum()), rel=1e-12)
    losses = [choice.loss for choice in low_ranks]
    assert losses == sorted(losses, reverse=True)
    assert isinstance(dense.structure, Dense)
    assert dense.loss == 0.0
    assert dense.params == m * n
    assert bool(dense.structure.reason) == (not low_ranks)


# Totals


def test_fixed_parameters_count_in_the_total(made: Profile) -> None:
    decided = plan(made, "60%")
    assert decided.dense_params == made.total_params
    assert decided.params == 500 + sum(x.params for x in decided.layers)
    assert 0.995 * 0.6 * made.total_params <= decided.params <= 0.6 * made.total_params
    assert decided.cost == decided.params


def test_scope_compressible_counts_only_what_may_change(made: Profile) -> None:
    options = PlanOptions(exclude=("block.1",))
    decided = plan(made, Budget.parse("50%", "compressible"), options)
    free = [x for x in decided.layers if x.name != "block.1"]
    assert decided.limit == sum(x.dense_params for x in free) // 2
    assert decided.cost == sum(x.params for x in free) <= decided.limit
    assert decided.params == 500 + sum(x.params for x in decided.layers)


def test_bytes_count_precision_buffers_and_overhead() -> None:
    generator = np.random.default_rng(0)
    made = profile([layer(spec("a", 32, 32), generator)], fixed_params=100, buffer_bytes=64)
    decided = plan(made, "bytes=70%", PlanOptions(bytes_per_param=2, overhead_bytes=1000))
    assert decided.dense_bytes == 2 * (100 + 32 * 32) + 64 + 1000
    assert decided.bytes == 2 * decided.params + 64 + 1000
    assert decided.cost == decided.bytes <= 0.7 * decided.dense_bytes


def test_flops_count_rows_and_everything_else() -> None:
    generator = np.random.default_rng(0)
    made = profile(
        [layer(spec("a", 64, 64), generator, rows=3.5), layer(spec("b", 64, 64), generator)],
        fixed_flops=5000.0,
    )
    decided = plan(made, "flops=60%")
    assert decided.dense_flops_per_example == made.total_flops_per_example
    assert decided.flops_per_example == 5000 + sum(x.flops_per_example for x in decided.layers)
    assert decided.cost <= 0.6 * made.total_flops_per_example
    a = decided["a"]
    assert isinstance(a.structure, LowRank)
    assert a.flops_per_example == 3.5 * 2 * a.structure.rank * 128


def test_a_tied_head_counts_its_weight_once_and_its_product() -> None:
    tied = spec("tokens", 64, 300, kind="embedding", bias=False, tied=("head",))
    made = profile([layer(tied, np.random.default_rng(0), rows=10.0)])
    decided = plan(made, "50%")
    structure = decided["tokens"].structure
    assert isinstance(structure, LowRank)
    assert decided.params == structure.rank * 364
    assert decided.flops_per_example == 10 * 2 * structure.rank * (64 + 364)


# Budgets against models


@given(
    st.integers(0, 10**6),
    st.lists(st.tuples(st.integers(4, 40), st.integers(4, 40)), min_size=1, max_size=6),
    st.sampled_from(sorted(UNITS)),
    st.sampled_from(sorted(ALLOCATORS)),
    st.sampled_from(["total", "compressible"]),
    st.integers(1, 100),
)
def test_a_budget_is_never_exceeded_or_its_smallest_is_named(
    seed: int, shapes: list[tuple[int, int]], kind: str, allocator: str, scope: Any, percent: int
) -> None:
    made = random_profile(seed, shapes, fixed_params=200)
    options = PlanOptions(allocator=allocator)
    budget = Budget.parse(f"{kind}={percent}%", scope)
    try:
        decided = plan(made, budget, options)
    except BudgetError as error:
        named = re.search(r"smallest reachable is ([0-9.]+) %", str(error))
        assert named is not None
        assert float(named[1]) > percent
        decided = plan(made, Budget.parse(f"{kind}={named[1]}%", scope), options)
    assert decided.cost <= decided.limit
    assert decided.within_budget


@given(st.integers(0, 10**6), st.integers(40, 99), st.integers(40, 99))
def test_predicted_loss_falls_with_the_budget(seed: int, one: int, other: int) -> None:
    made = random_profile(seed, SHAPES)
    tight, loose = (
        plan(made, f"{p}%", PlanOptions(allocator="global")).predicted_loss
        for p in sorted((one, other))
    )
    assert loose <= tight * (1 + 1e-9)  # float64 sums


@given(st.integers(0, 10**6), st.integers(25, 99))
def test_global_never_loses_more_than_uniform(seed: int, percent: int) -> None:
    made = random_profile(seed, SHAPES)
    best, plain = (
        plan(made, f"{percent}%", PlanOptions(allocator=name)).predicted_loss
        for name in ("global", "uniform")
    )
    assert best <= plain * (1 + 1e-9)  # float64 sums


def test_an_unreachable_budget_says_what_helps(made: Profile) -> None:
    stays = r"12\.8 % of the parameters cannot change"
    with pytest.raises(BudgetError, match=f"smallest reachable.*; {stays}; raise the budget$"):
        plan(made, "1%")
    with pytest.raises(BudgetError, match="raise the budget or --include more layers"):
        plan(made, "20%", PlanOptions(exclude=("block.*",)))
    with pytest.raises(BudgetError, match="lower --min-rank"):
        plan(made, "20%", PlanOptions(min_rank=8))


def test_flops_without_data_are_refused(made: Profile) -> None:
    empty = tuple(replace(x, rows_per_example=0.0) for x in made.layers)
    with pytest.raises(PlanError, match="profile with --data"):
        plan(replace(made, layers=empty, total_flops_per_example=0.0), "flops=50%")


def test_a_budget_above_the_model_leaves_it_alone(made: Profile) -> None:
    decided = plan(made, "params=1G")
    assert decided.params == made.total_params
    assert all(x.structure == Dense() for x in decided.layers)
    assert "nothing has to change" in decided.warnings[0]


# Options


def test_only_a_metric_with_output_sensitivity_allocates_globally(made: Profile) -> None:
    assert plan(made, "50%").allocator == "global"
    assert plan(made, "50%", PlanOptions(metric="plain")).allocator == "uniform"
    assert plan(replace(made, metric="plain"), "50%").allocator == "uniform"
    assert plan(made, "50%", PlanOptions(metric="plain", allocator="global")).allocator == "global"


def test_ranks_are_aligned_and_not_too_small(made: Profile) -> None:
    for name in ALLOCATORS:
        options = PlanOptions(allocator=name, multiple_of=4, min_rank=6)
        decided = plan(made, "80%", options)
        for x in decided.layers:
            if isinstance(x.structure, LowRank):
                assert x.structure.rank % 4 == 0
                assert x.structure.rank >= 8
                assert x.structure.rank <= made[x.name].spec.break_even_rank


def test_a_layer_without_a_useful_rank_says_so(made: Profile) -> None:
    decided = plan(made, "99%", PlanOptions(multiple_of=11))
    structure = decided["block.3"].structure  # 32 x 16: break-even at 10
    assert isinstance(structure, Dense)
    assert "break-even" in structure.reason


@pytest.mark.parametrize("pattern", ["block.1", "block.[1]", "*.1"])
def test_patterns_are_globs_or_names(made: Profile, pattern: str) -> None:
    kept = plan(made, "90%", PlanOptions(exclude=(pattern,)))["block.1"].structure
    assert kept == Dense(reason=f"excluded by --exclude {pattern}")
    only = plan(made, "90%", PlanOptions(include=(pattern,)))
    assert {x.name for x in only.layers if isinstance(x.structure, LowRank)} == {"block.1"}


def test_a_dotted_prefix_takes_everything_inside(made: Profile) -> None:
    assert all(
        isinstance(x.structure, Dense) and x.structure.reason
        for x in plan(made, "100%", PlanOptions(exclude=("block",))).layers
    )
    with pytest.raises(PlanError, match="matches no layer"):
        plan(made, "100%", PlanOptions(exclude=("bloc",)))


def test_a_tied_head_is_known_by_its_own_name() -> None:
    tied = spec("tokens", 64, 300, kind="embedding", bias=False, tied=("head",))
    made = profile([layer(tied, np.random.default_rng(0))])
    assert isinstance(plan(made, "100%", PlanOptions(exclude=("head",)))["tokens"].structure, Dense)


def test_a_pattern_that_matches_nothing_names_what_is_close(made: Profile) -> None:
    for options in (PlanOptions(include=("blok.1",)), PlanOptions(exclude=("blok.1",))):
        with pytest.raises(PlanError, match=r"--\w+ 'blok\.1'.*did you mean block\.1"):
            plan(made, "50%", options)


def test_what_is_left_alone_may_be_excluded_but_not_included(made: Profile) -> None:
    norm = LeftAlone("norm", "LayerNorm", 48, "not a matrix")
    made = replace(made, left_alone=(norm,))
    plan(made, "50%", PlanOptions(exclude=("norm",)))
    with pytest.raises(PlanError, match=r"norm \(LayerNorm\) cannot be compressed: not a matrix"):
        plan(made, "50%", PlanOptions(include=("norm",)))


@pytest.mark.parametrize(
    "fields",
    [{"multiple_of": 0}, {"min_rank": 0}, {"bytes_per_param": 0}, {"overhead_bytes": -1},
     {"allocator": "best"}, {"metric": "euclid"}],
)  # fmt: skip
def test_wrong_options_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(PlanError):
        PlanOptions(**fields)


def test_a_metric_that_was_not_profiled_is_refused(made: Profile) -> None:
    with pytest.raises(PlanError, match=r"block\.0: .*'diagonal'"):
        plan(made, "50%", PlanOptions(metric="diagonal"))


# Unusual spectra


def with_spectrum(of: LayerProfile, values: torch.Tensor) -> LayerProfile:
    return replace(of, spectra={"plain": values, "two-sided": values})


def test_a_zero_layer_gets_the_smallest_rank(made: Profile) -> None:
    first, *rest = made.layers
    zero = with_spectrum(first, torch.zeros(24, dtype=torch.float64))
    changed = replace(made, layers=(zero, *rest))
    for name in ALLOCATORS:
        decided = plan(changed, "100%", PlanOptions(allocator=name, min_rank=3))
        assert decided["block.0"].structure == LowRank(3)
        assert decided.predicted_loss == 0.0


def test_an_exact_low_rank_costs_nothing(made: Profile) -> None:
    first, *rest = made.layers
    exact = torch.zeros(24, dtype=torch.float64)
    exact[:5] = 1.0
    changed = replace(made, layers=(with_spectrum(first, exact), *rest))
    decided = plan(changed, "100%")
    assert decided["block.0"].structure == LowRank(5)
    assert decided.predicted_loss == 0.0
    assert decided.optimality_gap == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_a_loss_that_is_not_finite_names_the_layer(made: Profile, value: float) -> None:
    first, second, *rest = made.layers
    values = second.spectra["plain"].clone()
    values[0] = value
    changed = replace(made, layers=(first, with_spectrum(second, values), *rest))
    with pytest.raises(PlanError, match=r"^block\.1: its loss .* is not finite"):
        plan(changed, "50%")
    plan(changed, "90%", PlanOptions(exclude=("block.1",)))


def test_a_profile_without_layers_can_only_stay_as_it_is() -> None:
    made = profile([], fixed_params=100)
    assert plan(made, "100%").params == 100
    with pytest.raises(BudgetError, match="smallest reachable is 100 %"):
        plan(made, "50%")


@pytest.mark.parametrize(("wide", "step"), [(255, 1), (256, 8)])
def test_by_default_ranks_of_wide_layers_go_in_steps_of_8(wide: int, step: int) -> None:
    profiled = layer(spec("x", wide, 512), np.random.default_rng(0))
    choices = layer_choices(profiled, "two-sided")
    ranks = [c.structure.rank for c in choices if isinstance(c.structure, LowRank)]
    largest = profiled.spec.break_even_rank
    assert ranks == [r for r in range(1, largest + 1) if r < 8 or r % step == 0]
    every = layer_choices(profiled, "two-sided", multiple_of=1)
    assert len([c for c in every if isinstance(c.structure, LowRank)]) == largest


def test_a_plan_that_saves_little_work_says_so() -> None:
    """Early layers do the work, late ones hold the weights, as in convolutional networks."""
    generator = np.random.default_rng(0)
    early = layer(spec("early", 32, 32), generator, rows=4000.0)
    late = layer(spec("late", 256, 256), generator, rows=1.0)
    made = profile([early, late])
    smaller = plan(made, "params=50%")
    assert smaller.flops_per_example > 0.85 * smaller.dense_flops_per_example
    assert any("hardly faster" in w and "--budget flops=" in w for w in smaller.warnings)
    faster = plan(made, "flops=50%")
    assert not any("hardly faster" in w for w in faster.warnings)
    even = plan(random_profile(0, [(64, 64), (64, 64)]), "params=50%")
    assert not any("hardly faster" in w for w in even.warnings)
