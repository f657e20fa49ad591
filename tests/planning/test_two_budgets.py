"""Claims of plans under two budgets, against brute force."""

from __future__ import annotations

import re
from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import layer, random_profile, spec

from lrcompress.errors import BudgetError, PlanError
from lrcompress.formats.plan_json import plan_from_json, plan_to_json
from lrcompress.planning.allocators import ALLOCATORS
from lrcompress.planning.budget import Budget, Scope
from lrcompress.planning.choices import Choice
from lrcompress.planning.joint_allocator import allocate_jointly, allocate_mixed, least_cost
from lrcompress.planning.joint_problem import JointProblem, pose_jointly, undominated
from lrcompress.planning.lagrangian import maximise_dual
from lrcompress.planning.limit import Limit
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.structures import Dense, LowRank

# Losses are float64 sums of a few terms; the integer program stops at a relative gap of 1e-7
TOLERANCE = 1e-6

Table = list[list[tuple[int, int, float]]]  # layers' choices: two costs and a loss


def tables(most_layers: int, most_choices: int) -> st.SearchStrategy[Table]:
    loss = st.one_of(st.just(0.0), st.floats(0.01, 10), st.integers(0, 5).map(float))
    choice = st.tuples(st.integers(0, 60), st.integers(0, 60), loss)
    row = st.lists(choice, min_size=1, max_size=most_choices)
    return st.lists(row, min_size=1, max_size=most_layers)


def problem_of(table: Table, shares: tuple[float, float]) -> JointProblem:
    """A problem over the table; the rooms lie at shares of the way from least to most cost."""
    generator = np.random.default_rng(0)
    layers = [layer(spec(f"l{i}", 4, 4), generator) for i in range(len(table))]
    choices = [
        [
            Choice(params, 0.0, size, 0.0, LowRank(rank), loss)
            for rank, (params, size, loss) in enumerate(row, 1)
        ]
        for row in table
    ]
    limits = []
    for index, (kind, share) in enumerate(zip(("params", "bytes"), shares, strict=True)):
        least = sum(min(choice[index] for choice in row) for row in table)
        most = sum(max(choice[index] for choice in row) for row in table)
        room = least + int(share * (most - least))
        limits.append(Limit(Budget(kind, 1.0, relative=False), most, 0, room))  # type: ignore[arg-type]
    return pose_jointly(layers, choices, metric="two-sided", limits=limits)


def brute_force(table: Table, problem: JointProblem) -> float:
    """The least loss within both rooms; infinite if nothing fits."""
    fitting = (
        sum(loss for *_, loss in combination)
        for combination in product(*table)
        if sum(cost for cost, _, _ in combination) <= problem.rooms[0]
        and sum(cost for _, cost, _ in combination) <= problem.rooms[1]
    )
    return min(fitting, default=np.inf)


shares = st.tuples(st.floats(0, 1), st.floats(0, 1))


@given(tables(4, 6), shares)
def test_the_joint_allocation_is_the_best_within_both_rooms(
    table: Table, parts: tuple[float, float]
) -> None:
    problem = problem_of(table, parts)
    found, best = allocate_jointly(problem), brute_force(table, problem)
    if found is None:
        assert best == np.inf
        return
    assert found.loss == pytest.approx(best, rel=TOLERANCE, abs=1e-9)
    assert found.lower_bound is not None
    assert found.lower_bound <= best * (1 + TOLERANCE) + 1e-9
    rows = problem.start + np.array(found.chosen)
    assert problem.fits(rows)
    assert found.loss == pytest.approx(float(problem.losses[rows].sum()))


@given(tables(5, 6), shares)
def test_the_dual_bounds_every_allocation(table: Table, parts: tuple[float, float]) -> None:
    problem = problem_of(table, parts)
    dual, best = maximise_dual(problem), brute_force(table, problem)
    assert dual.bound <= best * (1 + TOLERANCE) + 1e-9
    assert (dual.prices >= 0).all()
    assert (dual.reduced >= -1e-9 * (1 + abs(problem.losses).max())).all()


@given(tables(8, 8), shares)
def test_other_allocators_stay_within_both_rooms(table: Table, parts: tuple[float, float]) -> None:
    problem = problem_of(table, parts)
    best = allocate_jointly(problem)
    for allocate in ALLOCATORS.values():
        found = allocate_mixed(problem, allocate)
        if found is None:
            continue
        assert problem.fits(problem.start + np.array(found.chosen))
        assert best is not None
        assert best.loss <= found.loss * (1 + TOLERANCE) + 1e-9


@given(tables(4, 6), shares)
def test_the_least_cost_within_the_other_room_is_that_of_brute_force(
    table: Table, parts: tuple[float, float]
) -> None:
    problem = problem_of(table, parts)
    for budget in (0, 1):
        other = 1 - budget
        costs = [
            sum(choice[budget] for choice in combination)
            for combination in product(*table)
            if sum(choice[other] for choice in combination) <= problem.rooms[other]
        ]
        assert least_cost(problem, budget) == min(costs)


def test_the_program_is_solved_where_nothing_simpler_fits() -> None:
    table = [
        [(0, 30, 0.0), (27, 10, 0.0), (29, 10, 0.0)],
        [(14, 0, 0.0), (28, 4, 0.0), (3, 0, 1.0)],
    ]
    found = allocate_jointly(problem_of(table, (0.5, 0.5)))
    assert found is not None
    assert found.loss == 1.0


def test_a_choice_that_is_worse_in_everything_is_left_out() -> None:
    cost = np.array([[1, 5], [5, 1], [5, 5], [1, 5], [6, 6]])
    loss = np.array([2.0, 2.0, 2.0, 2.0, 1.0])
    assert sorted(undominated(cost, loss)) == [0, 1, 4]


BOTH = ("params=50%", "flops=45%")


@pytest.fixture(scope="module")
def made():  # type: ignore[no-untyped-def]
    """Convolution-like layers: parameters and FLOPs lie in different layers."""
    return random_profile(3, [(16, 16), (16, 48), (48, 16), (24, 40)] * 3)


def test_a_plan_meets_two_budgets_and_loses_no_less_than_with_one(made) -> None:  # type: ignore[no-untyped-def]
    both = plan(made, BOTH)
    assert [str(one.budget) for one in both.spent] == [*BOTH]
    assert both.within_budget
    assert all(one.cost <= one.limit for one in both.spent)
    assert both.spent[0].cost == both.params
    assert both.spent[1].cost == int(both.flops_per_example)
    assert both.lower_bound is not None
    for budget in BOTH:
        alone = plan(made, budget)
        assert alone.lower_bound is not None
        assert both.predicted_loss >= alone.lower_bound * (1 - TOLERANCE)


def test_a_second_budget_that_does_not_bind_changes_nothing(made) -> None:  # type: ignore[no-untyped-def]
    alone = plan(made, "params=50%")
    both = plan(made, ("params=50%", "bytes=100%"))
    assert both.predicted_loss == pytest.approx(alone.predicted_loss, rel=1e-5)


@pytest.mark.parametrize("allocator", ["global", "uniform", "energy"])
def test_a_plan_of_two_budgets_is_written_and_read(made, allocator: str) -> None:  # type: ignore[no-untyped-def]
    decided = plan(made, BOTH, PlanOptions(allocator=allocator))
    read = plan_from_json(plan_to_json(decided), made)
    assert read == decided
    assert read.budgets == tuple(map(Budget.parse, BOTH))


def test_a_file_of_one_budget_names_no_other(made) -> None:  # type: ignore[no-untyped-def]
    assert '"also"' not in plan_to_json(plan(made, "params=50%"))


def test_a_plan_beyond_its_second_budget_is_not_within_budget(made) -> None:  # type: ignore[no-untyped-def]
    decided = plan(made, BOTH)
    text = plan_to_json(decided).replace('"flops=45%"', '"flops=20%"')
    read = plan_from_json(text, made)
    assert read.cost <= read.limit
    assert not read.within_budget
    assert read.lower_bound is None
    assert any("flops=20%" in warning for warning in read.warnings)


def test_budgets_that_cannot_be_met_together_name_what_can(made) -> None:  # type: ignore[no-untyped-def]
    flops = plan(made, "params=20%").flops_per_example
    assert flops > 0
    with pytest.raises(BudgetError, match=r"params=0\.1%: cannot be met; the smallest reachable"):
        plan(made, ("params=0.1%", "flops=50%"))


@pytest.mark.parametrize("second", ["flops", "latency"])
@pytest.mark.parametrize("scope", ["total", "compressible"])
def test_two_impossible_budgets_are_both_named_with_what_each_can_reach(
    made, second: str, scope: Scope
) -> None:  # type: ignore[no-untyped-def]
    asked = [Budget.parse(text, scope) for text in ("params=0.1%", f"{second}=0.2%")]
    with pytest.raises(BudgetError) as caught:
        plan(made, asked)
    said = str(caught.value)
    for budget in asked:
        (named,) = re.findall(
            rf"budget {budget}: cannot be met; the smallest reachable alone is ([0-9.]+) %", said
        )
        assert plan(made, Budget.parse(f"{budget.kind}={named}%", scope)).within_budget
        a_bit_less = f"{budget.kind}={float(named) - 0.11:.2f}%"
        with pytest.raises(BudgetError, match=rf"the smallest reachable is {named} %"):
            plan(made, Budget.parse(a_bit_less, scope))
    assert said.endswith("; raise all of them")
    layers = "layers' " if scope == "compressible" else ""
    assert (f"% of the {layers}dense latency" in said) == (second == "latency")
    assert ("FLOPs per example" in said) == (second == "flops")


def test_budgets_that_exclude_each_other_name_what_is_reachable_within_each() -> None:
    table = [[(1, 9, 1.0), (9, 1, 1.0)]]
    problem = problem_of(table, (0.5, 0.5))
    assert allocate_jointly(problem) is None
    assert [least_cost(problem, budget) for budget in (0, 1)] == [9, 9]


def test_two_budgets_of_one_kind_are_refused(made) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(PlanError, match="two limit the same"):
        plan(made, ("params=50%", "params=40%"))
    with pytest.raises(PlanError, match="needs a budget"):
        plan(made, ())


def test_every_layer_may_stay_dense_within_both(made) -> None:  # type: ignore[no-untyped-def]
    decided = plan(made, ("params=100%", "flops=100%"))
    assert decided.predicted_loss == 0.0
    assert all(isinstance(one.structure, Dense | LowRank) for one in decided.layers)
