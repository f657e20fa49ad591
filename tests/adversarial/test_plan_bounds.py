"""Claims of the lower bound: it is below every plan that it is shown with, or it is not shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from synthetic import random_profile

from lrcompress.errors import PlanError
from lrcompress.formats.plan_json import plan_from_json, plan_to_json
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import CurvePoint, Profile
from lrcompress.structures import Blast, LowRank

WIDE = [(320, 320), (640, 320), (320, 640)]  # whose default ranks go in steps of 8
NARROW = [(24, 24), (48, 24), (24, 48), (32, 16)]
ROUNDING = 1 + 1e-9


def edited(text: str, changes: dict[str, Any]) -> str:
    data = json.loads(text)
    for row in data["layers"]:
        row["structure"] = changes.get(row["name"], row["structure"])
    return json.dumps(data)


def ranks(decided: Plan) -> dict[str, int]:
    found = {x.name: x.structure for x in decided.layers}
    return {name: s.rank for name, s in found.items() if isinstance(s, LowRank)}


@given(st.integers(0, 10**6), st.sampled_from([50, 60, 75, 90]), st.booleans())
def test_no_bound_is_above_the_loss_of_its_plan(seed: int, kept: int, ties: bool) -> None:  # noqa: FBT001
    decided = plan(random_profile(seed, NARROW, ties=ties), f"{kept}%")
    assert decided.lower_bound is not None
    assert decided.optimality_gap is not None
    assert 0 <= decided.lower_bound <= decided.predicted_loss * ROUNDING
    assert decided.optimality_gap >= 0


def test_ranks_between_those_listed_have_no_bound() -> None:
    """One rank more in every layer that has one, paid for by whole steps in another."""
    made = random_profile(1, WIDE)
    decided = plan(made, "60%")
    name, rank = next(iter(ranks(decided).items()))
    text = edited(plan_to_json(decided), {name: {"type": "low_rank", "rank": rank - 3}})
    read = plan_from_json(text, made)
    assert read.within_budget
    assert read.lower_bound is None
    assert read.optimality_gap is None
    listed = edited(plan_to_json(decided), {name: {"type": "low_rank", "rank": rank - 8}})
    other = plan_from_json(listed, made)
    assert other.lower_bound == decided.lower_bound
    assert other.optimality_gap is not None
    assert other.predicted_loss > decided.predicted_loss
    wanted = (other.predicted_loss - other.lower_bound) / other.lower_bound  # type: ignore[operator]
    assert other.optimality_gap == pytest.approx(wanted)


def test_a_plan_off_the_grid_may_be_better_than_the_bound_and_says_nothing_of_it() -> None:
    """The very fault that a bound clipped to the loss hides."""
    made = random_profile(3, NARROW)
    coarse = plan(made, "60%", PlanOptions(multiple_of=8))
    fine = plan(made, "60%")
    assert coarse.lower_bound is not None
    assert fine.predicted_loss < coarse.lower_bound
    changes = {x.name: json.loads(_structure(x.structure)) for x in fine.layers}
    read = plan_from_json(edited(plan_to_json(coarse), changes), made)
    assert read.predicted_loss == pytest.approx(fine.predicted_loss)
    assert read.lower_bound is None
    assert read.optimality_gap is None


def _structure(structure: Any) -> str:
    from lrcompress.structures.serial import structure_to_json

    return json.dumps(structure_to_json(structure))


@pytest.mark.parametrize("options", [PlanOptions(min_rank=5), PlanOptions(structures=("blast",))])
def test_a_structure_that_was_not_to_be_chosen_from_has_no_bound(options: PlanOptions) -> None:
    made = random_profile(2, NARROW)
    curve = (CurvePoint(Blast(2, blocks=2), 1e-2), CurvePoint(Blast(6, blocks=2), 1e-4))
    layers = tuple(replace(x, curves=(curve,), curves_metric=made.metric) for x in made.layers)
    made = replace(made, layers=layers, structures=("low_rank", "blast"))
    decided = plan(made, "70%", options)
    assert decided.lower_bound is not None
    assert plan_from_json(plan_to_json(decided), made) == decided
    text = edited(plan_to_json(decided), {"block.1": {"type": "low_rank", "rank": 2}})
    read = plan_from_json(text, made)
    assert read.within_budget
    assert read.lower_bound is None


def test_a_layer_that_was_excluded_and_is_changed_all_the_same_leaves_no_bound() -> None:
    made = random_profile(2, NARROW)
    decided = plan(made, "80%", PlanOptions(exclude=("block.2",)))
    assert decided.lower_bound is not None
    text = edited(plan_to_json(decided), {"block.2": {"type": "low_rank", "rank": 15}})
    assert plan_from_json(text, made).lower_bound is None


def other_data(made: Profile) -> Profile:
    """The same network, calibrated with something else."""
    layers = (
        replace(x, spectra={m: s * (1.1 if i % 2 else 0.9) for m, s in x.spectra.items()})
        for i, x in enumerate(made.layers)
    )
    return replace(made, layers=tuple(layers), data_fingerprint="other")


def trials_of_other_data(made: Profile) -> Profile:
    return replace(
        made, layers=tuple(replace(x, factor=1.3) for x in made.layers[:1]) + made.layers[1:]
    )


@pytest.mark.parametrize("other", [other_data, trials_of_other_data])
def test_a_plan_read_against_a_profile_of_other_data_has_no_bound(
    other: Callable[[Profile], Profile],
) -> None:
    made = random_profile(4, NARROW)
    if other is trials_of_other_data:
        layers = tuple(replace(x, curves_metric=made.metric) for x in made.layers)
        made = replace(made, layers=layers)
    text = plan_to_json(plan(made, "60%"))
    assert plan_from_json(text, made).lower_bound is not None
    read = plan_from_json(text, other(made))
    assert read.lower_bound is None
    assert read.optimality_gap is None
    assert read.proven_for == ""


CHANGES: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a larger budget": lambda d: d.update(budget="params=65%"),
    "another kind": lambda d: d.update(budget="flops=60%"),
    "the scope": lambda d: d.update(scope="compressible"),
    "the metric": lambda d: d.update(metric="plain"),
    "excluded": lambda d: d["options"].update(exclude=["block.3"]),
    "included": lambda d: d["options"].update(include=["block.0", "block.1", "block.2"]),
    "the grid": lambda d: d["options"].update(multiple_of=4),
    "the smallest rank": lambda d: d["options"].update(min_rank=3),
    "corrections": lambda d: d["options"].update(corrections={"block.0": 2.0}),
    "the bound itself": lambda d: d.update(lower_bound=d["lower_bound"] * 0.9),
    "a bound above": lambda d: d.update(lower_bound=d["predicted_loss"] * 2),
    "its proof": lambda d: d.update(proven_for="0" * 64),
    "no proof": lambda d: d.pop("proven_for"),
    "a negative bound": lambda d: d.update(lower_bound=-1.0),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_poses_another_problem_drops_the_bound(change: str) -> None:
    made = random_profile(5, NARROW, fixed_params=500)
    layers = tuple(replace(x, curves_metric=made.metric) for x in made.layers)
    made = replace(made, layers=layers)
    data = json.loads(plan_to_json(plan(made, "60%")))
    CHANGES[change](data)
    read = plan_from_json(json.dumps(data), made)
    assert read.lower_bound is None
    assert read.optimality_gap is None


def test_a_bound_that_is_no_number_is_refused() -> None:
    made = random_profile(5, NARROW)
    data = json.loads(plan_to_json(plan(made, "60%")))
    with pytest.raises(PlanError, match="NaN is not a number"):
        plan_from_json(json.dumps({**data, "lower_bound": float("nan")}), made)


@pytest.mark.parametrize("scope", ["total", "compressible"])
@pytest.mark.parametrize("budget", ["60%", "flops=60%", "bytes=60%", "params=3k"])
def test_an_untouched_plan_keeps_its_bound(budget: str, scope: Any) -> None:
    made = random_profile(6, NARROW, fixed_params=100)
    options = PlanOptions(exclude=("block.2",), corrections={"block.0": 1.7, "block.1": 0.4})
    decided = plan(made, Budget.parse(budget, scope), options)
    read = plan_from_json(plan_to_json(decided), made)
    assert read == decided
    assert read.lower_bound is not None
    assert read.lower_bound <= read.predicted_loss * ROUNDING
