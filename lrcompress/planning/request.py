"""What a plan is asked for: a profile, a budget and options, and the limit that follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lrcompress.errors import PlanError
from lrcompress.messages import listed
from lrcompress.number_formats import parse_format
from lrcompress.planning.budget import NOTHING, Budget, Costs
from lrcompress.planning.choices import choice_of, layer_choices
from lrcompress.planning.latency import Latencies, latency_table
from lrcompress.planning.layer_filter import reasons_to_skip
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.problem import Problem, pose
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.structures import STRUCTURES, Dense


@dataclass(frozen=True, eq=False)
class PlanRequest:
    profile: Profile  # with the corrections of the options
    budget: Budget
    options: PlanOptions  # resolved
    skipped: Mapping[str, str]  # layers that the options keep dense, and why
    dense: Costs  # of the whole model
    fixed: Costs  # of the parts that no plan changes
    counted_dense: int  # cost in the budget's kind and scope, like those below
    counted_fixed: int
    limit: int

    @property
    def open_layers(self) -> tuple[LayerProfile, ...]:
        """The layers that may change."""
        return tuple(layer for layer in self.profile.layers if layer.name not in self.skipped)

    @property
    def formats(self) -> tuple[str, ...]:
        """The number formats that weights may have, as texts."""
        known = self.profile.formats
        wanted = self.options.formats or known
        runs = [text for text in wanted if self.options.provider in parse_format(text).providers]
        return tuple(runs)

    def latencies(self) -> Latencies | None:
        """Return the latencies for a plan; None if the plan needs none.

        It needs none if the budget counts something else and low rank is the only structure: low
        rank is never slower than the layer that it replaces at its rank.

        Raises:
            DataError: the options name a latency table that cannot be read.
        """
        options, known = self.options, set(self.profile.structures)
        named = set(options.structures or known) - {"dense", "low_rank"}
        given = self.budget.kind == "latency" or options.latency_table  # always read
        if not given and not known & named and not self.formats:
            return None
        return Latencies(latency_table(options.latency_table), options.provider, options.rows)

    def problem(self, latencies: Latencies | None) -> Problem:
        """Build the allocation problem for the layers that may change.

        Raises:
            PlanError: a layer's loss is not finite.
        """
        options, kind = self.options, self.budget.kind
        choices = [
            layer_choices(
                layer,
                options.curves,
                multiple_of=options.multiple_of,
                min_rank=options.min_rank,
                bytes_per_param=options.bytes_per_param,
                wanted=options.structures or tuple(STRUCTURES),
                formats=self.formats,
                latencies=latencies if kind in ("flops", "latency") else None,
                refuse_slower=kind == "flops",
            )
            for layer in self.open_layers
        ]
        room = self.limit - self.counted_fixed
        return pose(self.open_layers, choices, metric=options.curves, kind=kind, room=room)


def plan_request(profile: Profile, budget: Budget, options: PlanOptions) -> PlanRequest:
    """Compute the dense model's costs and the budget's limit.

    Raises:
        PlanError: the profile does not count what the budget limits, or counts only a part of it;
            or a pattern of the options matches no layer.
    """
    options = options.resolved(profile)
    profile = profile.corrected(options.corrections)
    skipped = reasons_to_skip(profile, options.include, options.exclude)
    work, whole = budget.kind in ("flops", "latency"), budget.scope == "total"
    if work and not profile.examples:
        raise PlanError(
            f"budget {budget}: without data it is not known how often a layer computes, nor what "
            "the network computes besides; profile with --data, or use --budget params=..."
        )
    if work and whole and profile.uncounted:
        raise PlanError(
            f"budget {budget}: the work of {listed(profile.uncounted)} is not counted, so the "
            "work of the whole model is unknown; use --scope compressible, or --budget params=..."
        )
    dense = {
        layer.name: choice_of(
            layer, profile.metric, Dense(), bytes_per_param=options.bytes_per_param
        )
        for layer in profile.layers
    }
    fixed = _fixed_costs(profile, options)
    stays = fixed.plus(dense[name] for name in skipped) if whole else NOTHING
    counted = stays.plus(choice for name, choice in dense.items() if name not in skipped)
    counted_dense = counted.of(budget.kind)
    if counted_dense == 0:
        raise PlanError(
            f"budget {budget}: the profile counts no {budget.kind} in the scope {budget.scope!r}; "
            + ("profile with --data" if work else "use --scope total")
        )
    return PlanRequest(
        profile=profile,
        budget=budget,
        options=options,
        skipped=skipped,
        dense=fixed.plus(dense.values()),
        fixed=fixed,
        counted_dense=counted_dense,
        counted_fixed=stays.of(budget.kind),
        limit=budget.limit(counted_dense),
    )


def _fixed_costs(profile: Profile, options: PlanOptions) -> Costs:
    """Return the costs without the profiled weights: biases, norms, buffers, attention."""
    params = profile.total_params - sum(layer.spec.weight_params for layer in profile.layers)
    flops = sum(
        float(round(Dense().flops_per_row(layer.spec) * layer.rows_per_example))
        for layer in profile.layers
    )
    others = max(float(round(profile.total_flops_per_example)) - flops, 0.0)
    stored = params * options.bytes_per_param + _buffer_bytes(profile) + options.overhead_bytes
    return Costs(params=params, flops_per_example=others, bytes=stored, latency_flops=others)


def _buffer_bytes(profile: Profile) -> int:
    """Return the bytes that the model stores besides parameters, in the stored dtype.

    The profile counts both together. The parameters are assumed to have the widest dtype that fits.
    """
    rests = (profile.total_bytes - width * profile.total_params for width in (8, 4, 2, 1))
    return next((rest for rest in rests if rest >= 0), 0)
