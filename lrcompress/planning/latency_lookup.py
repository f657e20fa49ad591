"""Latencies that a plan needs, and a warning about layers that get slower."""

from __future__ import annotations

from collections.abc import Sequence

from lrcompress.messages import listed
from lrcompress.planning.budget import Budget
from lrcompress.planning.choices import Choice
from lrcompress.planning.latency import Latencies, latency_table
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.profile import LayerProfile, Profile


def latencies_for(profile: Profile, budget: Budget, options: PlanOptions) -> Latencies | None:
    """Return the latencies for a plan; None if the plan needs none.

    It needs none if the budget counts something else and low rank is the only structure: low rank
    is never slower than the layer that it replaces at its rank.
    """
    if budget.kind == "latency" or options.latency_table:  # a given table is always read
        return Latencies(latency_table(options.latency_table), options.provider, options.rows)
    named = set(options.structures or profile.structures) - {"dense", "low_rank"}
    if not named or not set(profile.structures) & named:
        return None
    return Latencies(latency_table(options.latency_table), options.provider, options.rows)


def slow_layers(
    layers: Sequence[LayerProfile], choices: Sequence[Choice], latencies: Latencies | None
) -> tuple[str, ...]:
    """Return a warning that names the layers measured to be slower than dense."""
    if latencies is None:
        return ()
    slow = [
        layer.name
        for layer, choice in zip(layers, choices, strict=True)
        if latencies.is_slower(choice.structure, layer.spec)
    ]
    if not slow:
        return ()
    return (
        f"{listed(slow)}: smaller, but slower than dense at {latencies.rows} rows on "
        f"{latencies.provider}, as measured; a flops budget leaves such structures out",
    )
