"""Plans under a latency budget keep what they promise, by a timer that is part of the test."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from synthetic import random_profile
from torch import nn

from lrcompress.checkpoint import Entry
from lrcompress.compression.arbitrary_factors import arbitrary_factors
from lrcompress.errors import BudgetError, PlanError
from lrcompress.formats.plan_json import plan_from_json, plan_to_json
from lrcompress.layers import describe
from lrcompress.number_formats import parse_format
from lrcompress.pipeline import plan_timer
from lrcompress.pipeline.latency_promise import TOLERATED, LatencyPromise, Measure
from lrcompress.pipeline.plan_timer import PlanTimer, lacking
from lrcompress.planning.latency import Latencies, latency_table
from lrcompress.planning.network_time import NetworkTime, structures_digest
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Dense, LowRank, Quantised

BUDGET = "latency=60%"


@pytest.fixture(scope="module")
def made() -> Profile:
    return random_profile(5, [(64, 64), (64, 192), (192, 64)] * 3)


@pytest.fixture(scope="module")
def time(made: Profile) -> NetworkTime:
    """The layers take 80 % of the time; the first one more than its FLOPs say."""
    layers_ms = {x.name: x.spec.weight_params / 1e5 for x in made.layers}
    layers_ms[made.layers[0].name] *= 5
    return NetworkTime(layers_ms, sum(layers_ms.values()) / 4, "1 x 8 on cpu")


def true_ratio(decided: Plan, time: NetworkTime, slowdown: float) -> float:
    """The latency of a machine on which each changed layer takes `slowdown` times its estimate."""
    latencies = Latencies(latency_table(), "cpu", 128)
    ratio = time.rest_share
    for layer in decided.layers:
        factor = 1.0
        if not isinstance(layer.structure, Dense):
            factor = slowdown * latencies.ratio(layer.structure, layer.spec)
        ratio += factor * time.share(layer.name)
    return ratio


def maker(made: Profile, budget: str = BUDGET) -> Callable[[NetworkTime], Plan]:
    return lambda time: plan(made, budget, PlanOptions(network_time=time))


def counting(measure: Callable[[Plan], float | None]) -> tuple[Measure, list[Plan]]:
    seen: list[Plan] = []

    def counted(decided: Plan) -> float | None:
        seen.append(decided)
        return measure(decided)

    return counted, seen


def test_the_plan_counts_measured_times(made: Profile, time: NetworkTime) -> None:
    decided = maker(made)(time)
    # Costs are whole FLOPs, of which the profile counts about 1e6
    assert decided.cost / (decided.limit / 0.6) == pytest.approx(
        true_ratio(decided, time, 1.0), rel=1e-3
    )
    assert decided.cost <= decided.limit
    # One rounding for each layer, and one for the rest
    slack = len(made.layers) + 1
    assert decided.limit == pytest.approx(0.6 * made.total_flops_per_example, abs=slack)
    assert "estimated, of 60.0% allowed (1 x 8 on cpu)" in " ".join(decided.warnings)
    assert plan_from_json(plan_to_json(decided), made) == decided


def test_a_plan_without_measured_times_says_so(made: Profile) -> None:
    decided = plan(made, BUDGET)
    assert any("was not timed here" in warning for warning in decided.warnings)
    assert not any("timed" in warning for warning in plan(made, "60%").warnings)


def test_a_layer_that_takes_more_time_is_compressed_more(made: Profile, time: NetworkTime) -> None:
    before = maker(made)(time)
    largest = max(before.layers, key=lambda x: x.params * (not isinstance(x.structure, Dense)))
    layers_ms = {**time.layers_ms, largest.name: 5 * time.layers_ms[largest.name]}
    after = maker(made)(replace(time, layers_ms=layers_ms))
    assert after[largest.name].params < before[largest.name].params


def test_a_plan_that_keeps_its_promise_is_measured_once(made: Profile, time: NetworkTime) -> None:
    measure, seen = counting(lambda decided: true_ratio(decided, time, 1.0))
    decided = LatencyPromise(made, measure).keep(maker(made), time, fills=True)
    assert len(seen) == 1
    assert decided.latency_ratio == pytest.approx(true_ratio(decided, time, 1.0))
    assert decided.latency_ratio is not None
    said = f"latency: {decided.latency_ratio:.1%} of dense, measured here (1 x 8 on cpu), of 60.0%"
    assert any(warning.startswith(said) for warning in decided.warnings)
    assert decided.lower_bound is not None
    assert plan_from_json(plan_to_json(decided), made) == decided


@pytest.mark.parametrize("slowdown", [1.2, 1.5])
def test_a_plan_that_is_too_slow_is_made_again_with_the_measured_times(
    made: Profile, time: NetworkTime, slowdown: float
) -> None:
    measure, seen = counting(lambda decided: true_ratio(decided, time, slowdown))
    decided = LatencyPromise(made, measure).keep(maker(made), time, fills=True)
    assert measure(seen[0]) is not None
    assert true_ratio(seen[0], time, slowdown) > TOLERATED * 0.6
    assert decided.latency_ratio is not None
    assert decided.latency_ratio <= TOLERATED * 0.6
    known = decided.options.network_time
    assert known is not None
    assert known.correction == pytest.approx(slowdown, rel=1e-2)  # from whole FLOPs
    assert decided.within_budget


def test_room_that_was_not_used_is_filled_if_asked(made: Profile, time: NetworkTime) -> None:
    measure, seen = counting(lambda decided: true_ratio(decided, time, 0.7))
    filled = LatencyPromise(made, measure).keep(maker(made), time, fills=True)
    assert filled.predicted_loss < seen[0].predicted_loss
    assert filled.latency_ratio is not None
    assert 0.95 * 0.6 <= filled.latency_ratio <= TOLERATED * 0.6
    left = LatencyPromise(made, measure).keep(maker(made), time, fills=False)
    assert left.structures == seen[0].structures


def test_a_promise_that_cannot_be_kept_names_what_was_reached(
    made: Profile, time: NetworkTime
) -> None:
    with pytest.raises(BudgetError, match=r"at least, of 60\.0 % allowed.*latency=91\.0%"):
        LatencyPromise(made, lambda _: 0.91).keep(maker(made), time, fills=True)


def test_a_budget_that_no_plan_meets_is_refused_as_without_measurements(
    made: Profile, time: NetworkTime
) -> None:
    promise = LatencyPromise(made, lambda _: 1.0)
    with pytest.raises(BudgetError, match="cannot be met; the smallest reachable"):
        promise.keep(maker(made, "latency=5%"), time, fills=True)


def test_a_plan_that_cannot_be_timed_stays_an_estimate(made: Profile, time: NetworkTime) -> None:
    decided = LatencyPromise(made, lambda _: None).keep(maker(made), time, fills=True)
    assert decided.latency_ratio is None
    assert decided == maker(made)(time)


def test_the_scope_of_the_layers_allows_the_rest_besides(made: Profile, time: NetworkTime) -> None:
    from lrcompress.planning.budget import Budget

    budget = Budget.parse(BUDGET, "compressible")
    measure, _ = counting(lambda decided: true_ratio(decided, time, 1.3))
    decided = LatencyPromise(made, measure).keep(
        lambda known: plan(made, budget, PlanOptions(network_time=known)), time, fills=True
    )
    assert decided.latency_ratio is not None
    allowed = time.rest_share + 0.6 * (1 - time.rest_share)
    assert 0.95 * allowed <= decided.latency_ratio <= TOLERATED * allowed


def test_two_budgets_keep_the_promise_of_latency(made: Profile, time: NetworkTime) -> None:
    both = ("params=55%", BUDGET)
    measure, _ = counting(lambda decided: true_ratio(decided, time, 1.4))
    decided = LatencyPromise(made, measure).keep(
        lambda known: plan(made, both, PlanOptions(network_time=known)), time, fills=True
    )
    assert decided.within_budget
    assert decided.latency_ratio is not None
    assert decided.latency_ratio <= TOLERATED * 0.6


def test_an_edited_plan_is_no_longer_measured(made: Profile, time: NetworkTime) -> None:
    decided = LatencyPromise(made, lambda plan: true_ratio(plan, time, 1.0)).keep(
        maker(made), time, fills=True
    )
    name = next(x.name for x in decided.layers if isinstance(x.structure, LowRank))
    structures = {**decided.structures, name: LowRank(1)}
    assert decided.options.network_time is not None
    assert decided.options.network_time.measured(structures) is None
    reason = {**decided.structures}
    for key, structure in reason.items():
        if isinstance(structure, Dense):
            reason[key] = Dense("said otherwise")
    assert structures_digest(reason) == structures_digest(decided.structures)


@pytest.mark.parametrize(
    "broken", [{"rest_ms": -1.0}, {"correction": 0.0}, {"layers_ms": {}, "rest_ms": 0.0}]
)
def test_impossible_times_are_refused(time: NetworkTime, broken: dict[str, object]) -> None:
    with pytest.raises(PlanError, match="network_time"):
        replace(time, **broken)  # type: ignore[arg-type]


class Memory:
    """A store in memory."""

    def __init__(self) -> None:
        self.entries: dict[tuple[str, str], Entry] = {}

    def get(self, kind: str, name: str = "") -> Entry | None:
        return self.entries.get((kind, name))

    def put(self, kind: str, name: str, entry: Entry) -> None:
        self.entries[kind, name] = entry


def test_a_resumed_run_takes_the_ratio_that_was_measured(
    made: Profile, time: NetworkTime, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("measured again")

    monkeypatch.setattr(plan_timer, "export_onnx", refuse)
    decided, store = maker(made)(time), Memory()
    store.put(plan_timer.KIND, structures_digest(decided.structures), Entry({"ratio": 0.6}))
    timer = PlanTimer(None, made, time, None, store)  # type: ignore[arg-type]
    assert timer.measure(decided) == 0.6
    asked = timer.corrected(decided.budgets, PlanOptions())
    assert asked.network_time is not None


def test_a_graph_without_the_operators_of_the_formats_is_not_timed(made: Profile) -> None:
    decided = plan(made, "60%")
    assert lacking(decided, {"MatMul": 9}) == ""
    first, *rest = decided.layers
    for kind, needs in (("int8-dynamic", "MatMulInteger"), ("int4/32", "MatMulNBits")):
        layer = replace(first, structure=Quantised(Dense(), (parse_format(kind),)))
        rounded = replace(decided, layers=(layer, *rest))
        assert needs in lacking(rounded, {"MatMul": 9})
        assert lacking(rounded, {needs: 1}) == ""


def test_arbitrary_factors_have_the_plans_shapes_and_leave_the_network_as_it_was() -> None:
    module = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 192))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    specs = describe(module).layers
    profiled = random_profile(0, [(64, 64), (192, 64)])
    decided = plan(profiled, "50%")
    layers = tuple(
        replace(layer, name=spec.name, spec=spec, structure=structure)
        for layer, spec, structure in zip(
            decided.layers,
            specs,
            (LowRank(4), Quantised(LowRank(8), (parse_format("int4/32"),))),
            strict=True,
        )
    )
    with arbitrary_factors(module, replace(decided, layers=layers)):
        assert not isinstance(module[0], nn.Linear)
        assert torch.isfinite(module(torch.randn(3, 64))).all()
    assert isinstance(module[0], nn.Linear)
    after = module.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
