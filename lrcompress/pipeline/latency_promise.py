"""Plans under a latency budget that take no more time than they promise, as measured here.

A plan predicts its time from single layers. The network with the plan's structures is timed against
the dense one; if it is slower, the layers' predicted times are corrected by what was measured, and
the plan is made again.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lrcompress.errors import BudgetError
from lrcompress.formats.plan_json import plan_as
from lrcompress.planning.latency_remarks import allowed_ratio
from lrcompress.planning.network_time import NetworkTime, structures_digest
from lrcompress.planning.plan import Plan
from lrcompress.planning.request import plan_request
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Dense

ROUNDS = 3  # of planning again
TOLERATED = 1.03  # measured over allowed latency: what two measurements of one network differ by
ROOMY = 0.95  # measured over allowed latency, below which a plan has room left
STRONGEST = 2.5  # correction of one round, and its inverse
SAME = 0.005  # relative change of a correction that changes nothing

# Latency of the planned network over the dense one; None if it cannot be timed here
Measure = Callable[[Plan], float | None]
Make = Callable[[NetworkTime], Plan]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class _Tried:
    plan: Plan
    time: NetworkTime  # by which the plan was made
    ratio: float  # measured
    allowed: float

    @property
    def is_kept(self) -> bool:
        return self.ratio <= TOLERATED * self.allowed


@dataclass(eq=False)
class LatencyPromise:
    """Measures plans, and makes them again until they take no more time than allowed."""

    profile: Profile
    measure: Measure
    measured: dict[str, float | None] = field(default_factory=dict)  # by structures_digest

    def keep(self, make: Make, start: NetworkTime, *, fills: bool) -> Plan:
        """Return the plan of the least predicted loss that was measured to keep its promise.

        A plan that cannot be timed is returned as it was made.

        fills: make the plan again also if it is faster than it may be, with the room that is left.

        Raises:
            BudgetError: no plan keeps it; the message names the latency that was reached.
        """
        tried: list[_Tried] = []
        time = start
        for _ in range(1 + ROUNDS):
            try:
                made = make(time)
            except BudgetError as error:
                if not tried:
                    raise
                if any(one.is_kept for one in tried):
                    break
                raise self._broken(tried, str(error)) from error
            ratio = self._ratio(made)
            if ratio is None:
                return made
            one = _Tried(made, time, ratio, self._allowed(made))
            tried.append(one)
            log.info("latency: %.1f %% of dense, of %.1f %%", 100 * one.ratio, 100 * one.allowed)
            roomy = fills and made.predicted_loss > 0 and one.ratio < ROOMY * one.allowed
            correction = self._correction(one)
            if (one.is_kept and not roomy) or abs(correction / time.correction - 1) < SAME:
                break
            time = replace(time, correction=correction)
        kept = [one for one in tried if one.is_kept]
        if not kept:
            raise self._broken(tried)
        return self._signed(min(kept, key=lambda one: one.plan.predicted_loss))

    def _ratio(self, plan: Plan) -> float | None:
        key = structures_digest(plan.structures)
        if key not in self.measured:
            changed = any(not isinstance(layer.structure, Dense) for layer in plan.layers)
            self.measured[key] = self.measure(plan) if changed else 1.0
        return self.measured[key]

    def _allowed(self, plan: Plan) -> float:
        request = plan_request(self.profile, plan.budgets, plan.options)
        (limit,) = (one for one in request.limits if one.budget.kind == "latency")
        return allowed_ratio(request, limit)

    def _correction(self, one: _Tried) -> float:
        """Return the correction with which the plan's prediction is its measurement."""
        request = plan_request(self.profile, one.plan.budgets, one.plan.options)
        latencies = request.latencies()
        assert latencies is not None
        whole = request.dense.of("latency")
        changed = sum(
            latencies.time(layer.structure, layer.spec, row.rows_per_example)
            for layer, row in zip(one.plan.layers, request.profile.layers, strict=True)
            if not isinstance(layer.structure, Dense)
        )
        replaced = sum(
            latencies.time(Dense(), layer.spec, row.rows_per_example)
            for layer, row in zip(one.plan.layers, request.profile.layers, strict=True)
            if not isinstance(layer.structure, Dense)
        )
        if not changed:
            return one.time.correction
        factor = (one.ratio * whole - (whole - replaced)) / changed
        return one.time.correction * min(max(factor, 1 / STRONGEST), STRONGEST)

    def _signed(self, one: _Tried) -> Plan:
        """Return the plan with its measurement in its options."""
        plan = one.plan
        time = replace(
            one.time, plan_ratio=one.ratio, plan_digest=structures_digest(plan.structures)
        )
        return plan_as(
            self.profile,
            plan.budgets,
            replace(plan.options, network_time=time),
            plan.structures,
            bound=(plan.lower_bound, plan.proven_for),
        )

    def _broken(self, tried: Sequence[_Tried], why: str = "") -> BudgetError:
        fastest = min(tried, key=lambda one: one.ratio)
        percent = f"{100 * fastest.ratio:.1f}"
        shown = " and ".join(map(str, fastest.plan.budgets))
        reason = f" ({why})" if why else ""
        return BudgetError(
            f"budget {shown}: its latency cannot be kept here: the plans that should keep it were "
            f"measured to take {percent} % of the dense network's time at least, of "
            f"{100 * fastest.allowed:.1f} % allowed{reason}; use --budget latency={percent}%"
        )
