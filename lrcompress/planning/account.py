"""Conversion of a budget into a numeric limit, from the totals of the dense model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lrcompress.errors import PlanError
from lrcompress.messages import listed
from lrcompress.planning.budget import Budget
from lrcompress.planning.choices import choice_of
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.totals import NOTHING, Totals, fixed_totals
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Dense


@dataclass(frozen=True)
class Account:
    dense: Totals  # of the whole model
    fixed: Totals  # of the parts that no plan changes
    counted_dense: int  # cost in the budget's kind and scope, like those below
    counted_fixed: int
    limit: int


def open_account(
    profile: Profile, budget: Budget, options: PlanOptions, skipped: Mapping[str, str]
) -> Account:
    """Compute the dense model's totals and the budget's limit.

    Raises:
        PlanError: the profile does not count what the budget limits, or counts only a part of it.
    """
    if budget.kind in ("flops", "latency") and not profile.examples:
        raise PlanError(
            f"budget {budget}: without data it is not known how often a layer computes, nor what "
            "the network computes besides; profile with --data, or use --budget params=..."
        )
    if budget.kind in ("flops", "latency") and budget.scope == "total" and profile.uncounted:
        raise PlanError(
            f"budget {budget}: the work of {listed(profile.uncounted)} is not counted, so that no "
            f"share of the whole model's is known; use --scope compressible, or --budget params=..."
        )
    per_param = options.bytes_per_param
    fixed = fixed_totals(profile, bytes_per_param=per_param, overhead_bytes=options.overhead_bytes)
    dense = {
        layer.name: choice_of(layer, profile.metric, Dense(), bytes_per_param=per_param)
        for layer in profile.layers
    }
    stays = fixed if budget.scope == "total" else NOTHING
    if budget.scope == "total":
        stays = stays.plus(dense[name] for name in skipped)
    counted = stays.plus(choice for name, choice in dense.items() if name not in skipped)
    if counted.of(budget.kind) == 0:
        raise PlanError(
            f"budget {budget}: the profile counts no {budget.kind} in the scope {budget.scope!r}; "
            + (
                "profile with --data"
                if budget.kind in ("flops", "latency")
                else "use --scope total"
            )
        )
    return Account(
        dense=fixed.plus(dense.values()),
        fixed=fixed,
        counted_dense=counted.of(budget.kind),
        counted_fixed=stays.of(budget.kind),
        limit=budget.limit(counted.of(budget.kind)),
    )
