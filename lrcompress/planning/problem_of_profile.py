"""Builds the allocation problem from a profile, a budget and the options."""

from __future__ import annotations

from collections.abc import Sequence

from lrcompress.planning.account import Account
from lrcompress.planning.budget import Budget
from lrcompress.planning.choices import layer_choices
from lrcompress.planning.latency import Latencies
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.problem import Problem, pose
from lrcompress.profiling.profile import LayerProfile
from lrcompress.structures import STRUCTURES


def problem_of(
    layers: Sequence[LayerProfile],
    budget: Budget,
    options: PlanOptions,
    account: Account,
    latencies: Latencies | None,
) -> Problem:
    """Build the problem for the layers that may change. `options` are resolved.

    Raises:
        PlanError: a layer's loss is not finite.
    """
    return pose(
        layers,
        [
            layer_choices(
                layer,
                options.curves,
                multiple_of=options.multiple_of,
                min_rank=options.min_rank,
                bytes_per_param=options.bytes_per_param,
                wanted=options.structures or tuple(STRUCTURES),
                latencies=latencies if budget.kind in ("flops", "latency") else None,
                refuse_slower=budget.kind == "flops",
            )
            for layer in layers
        ],
        metric=options.curves,
        kind=budget.kind,
        room=account.limit - account.counted_fixed,
    )
