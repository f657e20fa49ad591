"""Claims of the allocators, against brute force and another solver."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import Bounds, LinearConstraint, milp
from synthetic import layer, profile, random_profile, spec

from lrcompress.layers import LayerSpec
from lrcompress.planning.allocators import ALLOCATORS
from lrcompress.planning.choices import Choice, layer_choices
from lrcompress.planning.knapsack_core import solve_core
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.planning.problem import Allocation, Problem, pose
from lrcompress.planning.relaxation import Table, lower_hull, relax
from lrcompress.planning.threshold_allocators import iid_stable_rank
from lrcompress.structures import Dense, LowRank

# Losses are float64 sums of at most a few thousand terms: 1e-9 is far above their rounding.
LOSS_TOLERANCE = 1e-9

shapes = st.tuples(st.integers(2, 24), st.integers(2, 24))


def tables(most_layers: int, most_choices: int) -> st.SearchStrategy[list[list[tuple[int, float]]]]:
    """(cost, loss) of arbitrary choices: not convex, with ties, losses of zero, dear and bad."""
    loss = st.one_of(st.just(0.0), st.floats(0, 10), st.integers(0, 5).map(float))
    choice = st.tuples(st.integers(0, 60), loss)
    return st.lists(
        st.lists(choice, min_size=1, max_size=most_choices), min_size=1, max_size=most_layers
    )


def problem_of(table: list[list[tuple[int, float]]], share: float) -> Problem:
    """A problem over the table, with room for `share` of the way from least to most cost."""
    generator = np.random.default_rng(0)
    layers = [layer(spec(f"l{i}", 4, 4), generator) for i in range(len(table))]
    choices = [
        [Choice(cost, float(cost), cost, 0.0, LowRank(rank), loss) for rank, (cost, loss) in row_of]
        for row_of in (list(enumerate(row, 1)) for row in table)
    ]
    least = sum(min(cost for cost, _ in row) for row in table)
    most = sum(max(cost for cost, _ in row) for row in table)
    room = least + int(share * (most - least))
    return pose(layers, choices, metric="two-sided", kind="params", room=room)


def brute_force(table: list[list[tuple[int, float]]], room: int) -> float:
    return min(
        sum(loss for _, loss in combination)
        for combination in product(*table)
        if sum(cost for cost, _ in combination) <= room
    )


@given(tables(4, 6), st.floats(0, 1))
def test_global_equals_brute_force(table: list[list[tuple[int, float]]], share: float) -> None:
    problem = problem_of(table, share)
    found = ALLOCATORS["global"](problem)
    best = brute_force(table, problem.room)
    assert found.loss == pytest.approx(best, rel=LOSS_TOLERANCE, abs=1e-12)
    assert found.lower_bound is not None
    assert found.lower_bound <= best * (1 + LOSS_TOLERANCE) + 1e-12


@given(tables(12, 12), st.floats(0, 1))
def test_every_allocator_stays_within_the_room(
    table: list[list[tuple[int, float]]], share: float
) -> None:
    problem = problem_of(table, share)
    for allocate in ALLOCATORS.values():
        found = allocate(problem)
        assert found.cost <= problem.room
        assert len(found.chosen) == len(problem.layers)


@given(tables(12, 12), st.floats(0, 1))
def test_global_never_loses_more_than_the_others_and_its_bound_holds(
    table: list[list[tuple[int, float]]], share: float
) -> None:
    problem = problem_of(table, share)
    found = {name: allocate(problem) for name, allocate in ALLOCATORS.items()}
    bound = found["global"].lower_bound
    assert bound is not None
    for other in found.values():
        assert found["global"].loss <= other.loss * (1 + LOSS_TOLERANCE) + 1e-12
        assert bound <= other.loss * (1 + LOSS_TOLERANCE) + 1e-12


@given(tables(10, 10), st.floats(0, 1), st.floats(0, 1))
def test_more_room_never_loses_more(
    table: list[list[tuple[int, float]]], share: float, other: float
) -> None:
    small, large = (ALLOCATORS["global"](problem_of(table, s)).loss for s in sorted((share, other)))
    assert large <= small * (1 + LOSS_TOLERANCE) + 1e-12


@given(tables(6, 8), st.floats(0, 1))
def test_a_narrow_search_still_proves_a_true_bound(
    table: list[list[tuple[int, float]]], share: float
) -> None:
    problem = problem_of(table, share)
    view = Table.of(problem)
    relaxed = relax(view, problem.room)
    best = ALLOCATORS["global"](problem).loss
    worst = float(sum(loss[0] for loss in problem.losses))
    solved = solve_core(
        view, relaxed, room=problem.room, excess=worst - relaxed.bound + 1.0, width=1
    )
    assert relaxed.bound + solved.proven <= best * (1 + LOSS_TOLERANCE) + 1e-9


def integer_program(problem: Problem) -> float:
    """The optimum by HiGHS, in whose tolerances the comparison is made."""
    view = Table.of(problem)
    columns = np.arange(len(view.cost))
    one_each = (view.layer[None, :] == np.arange(len(problem.layers))[:, None]).astype(float)
    result = milp(
        view.loss,
        integrality=np.ones(len(columns)),
        bounds=Bounds(0, 1),
        constraints=[
            LinearConstraint(one_each, 1, 1),
            LinearConstraint(view.cost[None, :] / 32, -np.inf, problem.room / 32),
        ],
        options={"mip_rel_gap": 0.0},
    )
    return float(result.fun)


@pytest.mark.parametrize("seed", range(5))
def test_global_agrees_with_an_integer_program(seed: int) -> None:
    made = random_profile(seed, [(16, 16), (16, 48), (48, 16)] * 2)
    choices = [layer_choices(x, "two-sided") for x in made.layers]
    room = int(made.total_params * 0.55)
    problem = pose(made.layers, choices, metric="two-sided", kind="params", room=room)
    assert ALLOCATORS["global"](problem).loss == pytest.approx(integer_program(problem), rel=1e-6)


@given(st.integers(0, 10**6), st.lists(shapes, min_size=1, max_size=8), st.booleans())
def test_global_proves_its_gap_on_spectra(
    seed: int,
    sizes: list[tuple[int, int]],
    ties: bool,  # noqa: FBT001  # drawn
) -> None:
    made = random_profile(seed, sizes, ties=ties)
    decided = plan(made, "100%", PlanOptions(allocator="global"))
    assert decided.predicted_loss == 0.0
    share = 0.7 if all(x.spec.break_even_rank > 2 for x in made.layers) else 1.0
    decided = plan(made, f"{100 * share}%", PlanOptions(allocator="global"))
    assert decided.optimality_gap is not None
    assert decided.optimality_gap <= 1e-3


@given(st.lists(st.tuples(st.integers(0, 50), st.floats(-5, 5)), min_size=1, max_size=30))
def test_no_point_lies_below_the_lower_hull(points: list[tuple[int, float]]) -> None:
    unique = sorted(dict(points).items())
    corners = [unique[i] for i in lower_hull(unique)]
    assert corners[0] == unique[0]
    assert corners[-1] == unique[-1]
    xs, ys = zip(*corners, strict=True)
    for x, y in unique:
        assert np.interp(x, xs, ys) <= y + 1e-12 * 50  # rounding of one interpolation


def ranks(problem: Problem, found: Allocation) -> list[int]:
    chosen = [problem.choices[i][k].structure for i, k in enumerate(found.chosen)]
    return [x.rank if isinstance(x, LowRank) else -1 for x in chosen]


def posed(specs: list[LayerSpec], share: float) -> Problem:
    generator = np.random.default_rng(3)
    made = [layer(of, generator) for of in specs]
    room = int(share * sum(of.weight_params for of in specs))
    choices = [layer_choices(x, "two-sided") for x in made]
    return pose(made, choices, metric="two-sided", kind="params", room=room)


def test_uniform_keeps_one_share_in_every_layer() -> None:
    specs = [spec("a", 96, 96), spec("b", 384, 96), spec("c", 96, 192)]
    problem = posed(specs, 0.5)
    for of, rank in zip(specs, ranks(problem, ALLOCATORS["uniform"](problem)), strict=True):
        by_rule = int(0.5 * of.weight_params / (of.out_features + of.in_features))
        assert rank - by_rule in (0, 1)  # what is left over raises a few layers by one


def test_uniform_at_the_whole_share_is_dense() -> None:
    problem = posed([spec("a", 96, 96), spec("b", 384, 96)], 1.0)
    assert ranks(problem, ALLOCATORS["uniform"](problem)) == [-1, -1]


def test_energy_keeps_one_share_of_the_energy() -> None:
    problem = posed([spec(f"l{i}", 128, 128) for i in range(6)], 0.4)
    found = ALLOCATORS["energy"](problem)
    above, below = [], []  # the energy kept, and what the next smaller choice would keep
    for index, k in enumerate(found.chosen):
        whole, loss = problem.removal_losses[index], problem.losses[index]
        above.append(1 - loss[k] / whole)
        below.append(1 - loss[k - 1] / whole if k else 0.0)
    # One threshold lies between them in each layer, but for the one layer that stopped short.
    assert sum(least >= max(below) for least in above) >= len(above) - 1


def test_scaled_stable_rank_is_proportional() -> None:
    problem = posed([spec(f"l{i}", 128, 128) for i in range(6)], 0.3)
    found = ranks(problem, ALLOCATORS["scaled-stable-rank"](problem))
    factors = [
        rank / x.measures.stable_rank
        for rank, x in zip(found, problem.layers, strict=True)
        if rank > 0
    ]
    steps = [1 / x.measures.stable_rank for x in problem.layers]
    assert len(factors) > 1
    assert max(factors) - min(factors) <= 2 * max(steps)  # ranks are whole


def test_stable_rank_of_noise_matches_a_drawn_matrix() -> None:
    drawn = np.random.default_rng(0).standard_normal((300, 1200))
    singular = np.linalg.svd(drawn, compute_uv=False)
    measured = float((singular**2).sum() / singular[0] ** 2)
    # The largest singular value fluctuates by about n^(-2/3): 1 % at this size, squared.
    assert iid_stable_rank(300, 1200) == pytest.approx(measured, rel=0.05)


@pytest.mark.parametrize("name", ALLOCATORS)
def test_allocators_are_deterministic(name: str) -> None:
    made = random_profile(1, [(64, 64)] * 12, ties=True)
    options = PlanOptions(allocator=name)
    assert plan(made, "47%", options) == plan(made, "47%", options)


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("percent", [30, 50, 65, 80, 95])
def test_budget_is_met_within_half_a_percent(name: str, percent: int) -> None:
    made = random_profile(2, [(96, 96), (96, 384), (384, 96), (192, 96)] * 6, fixed_params=20_000)
    decided = plan(made, f"{percent}%", PlanOptions(allocator=name))
    assert 0.995 * decided.limit <= decided.cost <= decided.limit
    assert decided.warnings == ()


def test_a_choice_that_costs_more_than_dense_is_not_taken() -> None:
    """A lookup costs no FLOPs, so a factored embedding only adds some."""
    generator = np.random.default_rng(0)
    made = profile(
        [
            layer(spec("tokens", 32, 400, kind="embedding", bias=False), generator),
            layer(spec("linear", 64, 64), generator),
        ]
    )
    for name in ALLOCATORS:
        decided = plan(made, "flops=60%", PlanOptions(allocator=name))
        assert decided["tokens"].structure == Dense()
        assert isinstance(decided["linear"].structure, LowRank)
