"""What a plan looks up in the table of latencies."""

from __future__ import annotations

from collections.abc import Sequence

from lrcompress.messages import listed
from lrcompress.planning.budget import Budget
from lrcompress.planning.choices import Choice
from lrcompress.planning.latency import Latencies, latency_table
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.profile import LayerProfile, Profile


def latencies_for(profile: Profile, budget: Budget, options: PlanOptions) -> Latencies | None:
    """None where nobody asks: a budget counts something else, and low rank, which is never slower
    than what it replaces at its rank, is all there is."""
    if budget.kind == "latency" or options.latency_table:  # one that is named is read
        return Latencies(latency_table(options.latency_table), options.provider, options.rows)
    named = set(options.structures or profile.structures) - {"dense", "low_rank"}
    if not named or not set(profile.structures) & named:
        return None
    return Latencies(latency_table(options.latency_table), options.provider, options.rows)


def slow_layers(
    layers: Sequence[LayerProfile], choices: Sequence[Choice], latencies: Latencies | None
) -> tuple[str, ...]:
    """A warning that names the layers whose structure measures slower than the dense layer."""
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
