"""Claims of plan.json: it reads back, it may be edited, and a damaged one is refused in a line.

LRCOMPRESS_FUZZ is the number of cases that each fuzz test tries (default 100).
"""

from __future__ import annotations

import json
import os
import re
import sys
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from synthetic import random_profile

from lrcompress.errors import LrcompressError, PlanError
from lrcompress.formats.plan_json import plan_from_json, plan_to_json
from lrcompress.planning.allocators import ALLOCATORS
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import CurvePoint, Profile
from lrcompress.structures import (
    STRUCTURES,
    Blast,
    BlockDiagonal,
    Dense,
    Interpolative,
    Kronecker,
    LowRank,
    Monarch,
)

FUZZ = int(os.environ.get("LRCOMPRESS_FUZZ", "100"))
SHAPES = [(24, 24), (48, 24), (24, 48), (32, 16)]


@pytest.fixture
def made() -> Profile:
    return random_profile(0, SHAPES, fixed_params=500)


def edited(decided: Plan, changes: dict[str, Any]) -> str:
    """plan.json with other structures for the layers named."""
    data = json.loads(plan_to_json(decided))
    for row in data["layers"]:
        row["structure"] = changes.get(row["name"], row["structure"])
    return json.dumps(data)


@pytest.mark.parametrize("name", ALLOCATORS)
@pytest.mark.parametrize("budget", ["60%", "flops=70%", "bytes=20kB", "100%", "params=1G"])
@pytest.mark.parametrize("scope", ["total", "compressible"])
def test_a_plan_reads_back_equal(made: Profile, name: str, budget: str, scope: Any) -> None:
    options = PlanOptions(allocator=name, exclude=("block.2",), bytes_per_param=2)
    decided = plan(made, Budget.parse(budget, scope), options)
    assert plan_from_json(plan_to_json(decided), made) == decided


def test_the_file_is_for_people(made: Profile) -> None:
    text = plan_to_json(plan(made, "50%"))
    lines = [line for line in text.splitlines() if '"name"' in line]
    assert len(lines) == len(made.layers)  # one line a layer
    data = json.loads(text)
    assert data["schema_version"] == 1
    assert data["budget"] == "params=50%"
    assert "break_even_rank" in data["how_to_edit"]
    assert data["totals"]["params"]["kept"] <= 0.5
    assert data["layers"][1]["shape"] == [48, 24]


@given(st.integers(0, 10**6), st.data())
def test_edited_ranks_are_honoured(seed: int, data: st.DataObject) -> None:
    made = random_profile(seed, SHAPES)
    decided = plan(made, "60%")
    changes: dict[str, Any] = {
        x.name: data.draw(
            st.one_of(
                st.just({"type": "dense"}),
                st.fixed_dictionaries(
                    {"type": st.just("low_rank"), "rank": st.integers(1, x.spec.break_even_rank)}
                ),
            )
        )
        for x in made.layers
    }
    read = plan_from_json(edited(decided, changes), made)
    for x in read.layers:
        change = changes[x.name]
        if change["type"] == "dense":
            assert x.structure == Dense()
            assert x.predicted_loss == 0.0
        else:
            rank = change["rank"]
            assert x.structure == LowRank(rank)
            m, n = made[x.name].spec.out_features, made[x.name].spec.in_features
            assert x.params == rank * (m + n)
    assert read.params == sum(x.params for x in read.layers)
    assert read.within_budget == (read.params <= read.limit)
    assert any("above its budget" in w for w in read.warnings) == (not read.within_budget)
    if read.within_budget:  # the bound was proven for every plan within this budget
        assert decided.lower_bound is not None
        assert read.lower_bound == decided.lower_bound
        # The bound comes from fewer than 100 float64 additions. At this budget, no partial sum is
        # above twice the loss of removing all layers, so each rounds by at most eps times that loss
        whole = sum(x.loss_of_removal(made.metric) for x in made.layers)
        assert read.lower_bound <= read.predicted_loss + 100 * sys.float_info.epsilon * whole
    else:
        assert read.lower_bound is None


def test_only_the_structures_are_read_back(made: Profile) -> None:
    decided = plan(made, "50%")
    data = json.loads(plan_to_json(decided))
    data["totals"] = data["predicted_loss"] = data["how_to_edit"] = "rewritten"
    for row in data["layers"]:
        row["params"] = row["predicted_loss"] = -1
        del row["shape"]
    assert plan_from_json(json.dumps(data), made) == decided


def test_a_plan_for_other_weights_is_honoured_aloud(made: Profile) -> None:
    text = plan_to_json(plan(made, "50%"))
    read = plan_from_json(text, replace(made, model_fingerprint="tuned"))
    assert "other weights" in read.warnings[0]
    assert read.lower_bound is None
    assert read.model_fingerprint == "tuned"


@pytest.mark.parametrize(
    ("structure", "complaint"),
    [
        ({"type": "low_rank", "rank": 0}, "rank 0 is not between 1 and 24"),
        ({"type": "low_rank", "rank": 25}, "use a rank up to 15, or dense"),
        ({"type": "low_rank", "rank": 17}, "use a rank up to 15, or dense"),
        ({"type": "low_rank", "rank": "8"}, "rank"),
        ({"type": "low_rank", "rank": 8.5}, "rank"),
        ({"type": "low_rank", "rank": True}, "rank"),
        ({"type": "low_rank"}, "rank"),
        ({"type": "blast", "rank": 25}, "rank 25 is not between 1 and 24"),
        ({"rank": 8}, "type"),
        (48, "structure"),
        (None, "structure"),
    ],
)
def test_a_wrong_structure_is_refused_by_layer(
    made: Profile, structure: object, complaint: str
) -> None:
    text = edited(plan(made, "50%"), {"block.1": structure})
    with pytest.raises(PlanError, match=rf"^block\.1: .*{re.escape(complaint)}") as caught:
        plan_from_json(text, made)
    assert "\n" not in str(caught.value)


def test_layers_are_named_exactly(made: Profile) -> None:
    data = json.loads(plan_to_json(plan(made, "50%")))
    rows = data["layers"]

    def read(layers: object) -> None:
        plan_from_json(json.dumps({**data, "layers": layers}), made)

    with pytest.raises(PlanError, match=r"no line for block\.3"):
        read(rows[:3])
    with pytest.raises(PlanError, match=r"block\.1 appears twice"):
        read([*rows, rows[1]])
    with pytest.raises(PlanError, match=r"no layer blok\.1; did you mean block\.1"):
        read([*rows, {**rows[1], "name": "blok.1"}])
    with pytest.raises(PlanError, match=r"no layer blocks; did you mean block\.\d"):
        read([*rows, {**rows[1], "name": "blocks"}])  # "block" is no layer
    unreadable: list[Any] = [{}, "rows", None, [7], [{"structure": {"type": "dense"}}]]
    for wrong in unreadable:
        with pytest.raises(PlanError):
            read(wrong)


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", "7", '{"schema_version": 2}', "{}", '{"schema_version": true}',
     "[" * 100_000, '{"schema_version": 1}', '{"a": ' + "9" * 5000 + "}"],
)  # fmt: skip
def test_what_is_not_a_plan_is_refused_in_one_line(made: Profile, text: str) -> None:
    with pytest.raises(PlanError) as caught:
        plan_from_json(text, made)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
    | st.sampled_from(["dense", "low_rank", "blast", "50%", "block.1", "global", "plain", 1e308,
                        2**70]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner,
                                                                max_size=3),
    max_leaves=6,
)  # fmt: skip


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every path into a JSON value."""
    inside = list(value.items()) if isinstance(value, dict) else []
    inside = list(enumerate(value)) if isinstance(value, list) else inside
    return [path, *(deeper for key, item in inside for deeper in places(item, (*path, key)))]


def with_curves(made: Profile) -> Profile:
    """Two sizes each of structures that suit a linear layer, by turns one and another."""
    curves = (
        (CurvePoint(Blast(2, blocks=2), 1e-4), CurvePoint(Blast(6, blocks=2), 1e-6)),
        (CurvePoint(Interpolative(4, chunk=2), 1e-5), CurvePoint(Interpolative(8, chunk=2), 0.0)),
        (CurvePoint(BlockDiagonal(0, blocks=4), 1e-4), CurvePoint(BlockDiagonal(3, 4), 1e-6)),
        (CurvePoint(Monarch(1, blocks=2), 1e-3), CurvePoint(Monarch(4, blocks=2), 1e-6)),
        (CurvePoint(Kronecker(1), 1e-4), CurvePoint(Kronecker(3), 1e-6)),
    )
    layers = [
        replace(layer, curves=(curves[i], curves[(i + 1) % 5]), curves_metric=made.metric)
        for i, layer in enumerate(made.layers)
    ]
    return replace(made, layers=tuple(layers), structures=tuple(STRUCTURES))


FUZZED = with_curves(random_profile(0, SHAPES, fixed_params=500))
WRITTEN = plan_to_json(plan(FUZZED, "60%", PlanOptions(exclude=("block.2",))))


@settings(max_examples=FUZZ, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_no_mutated_plan_raises_anything_else(data: st.DataObject) -> None:
    plan_data = json.loads(WRITTEN)
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(plan_data)[1:]))
        at = plan_data
        for key in path:
            at = at[key]
        if data.draw(st.booleans()):
            at[last] = data.draw(junk)
        else:
            del at[last]
        assume(plan_data)
    survives(json.dumps(plan_data))


@settings(max_examples=FUZZ)
@given(st.integers(0, len(WRITTEN)), st.integers(0, 40), st.text(max_size=5))
def test_no_damaged_text_raises_anything_else(start: int, length: int, put: str) -> None:
    survives(WRITTEN[:start] + put + WRITTEN[start + length :])


def test_what_is_fuzzed_has_many_structures() -> None:
    types = [row["structure"]["type"] for row in json.loads(WRITTEN)["layers"]]
    assert len({*types} - {"dense", "low_rank"}) > 1


def test_blocks_at_their_default_are_told_and_need_not_be() -> None:
    """People read plan.json without knowing defaults; older files leave them out."""
    layer = FUZZED["block.0"]
    curve = (CurvePoint(Blast(2), 1e-4), CurvePoint(Blast(6), 1e-6))
    made = replace(FUZZED, layers=(replace(layer, curves=(curve,)), *FUZZED.layers[1:]))
    told = {"type": "blast", "rank": 3, "blocks": 4}
    text = edited(plan(made, "60%"), {"block.0": {"type": "blast", "rank": 3}})
    read = plan_from_json(text, made)
    assert read.layers[0].structure == Blast(3, blocks=4)
    assert json.loads(plan_to_json(read))["layers"][0]["structure"] == told
    assert plan_from_json(plan_to_json(read), made).layers == read.layers


def survives(text: str) -> None:
    """Read as a plan that can be written again, or refused in one line."""
    try:
        read = plan_from_json(text, FUZZED)
    except LrcompressError as refusal:
        message = str(refusal)
    else:
        message = ""
        assert plan_from_json(plan_to_json(read), FUZZED).layers == read.layers
    assert "\n" not in message
