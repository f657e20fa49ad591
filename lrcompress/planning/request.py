"""What a plan is asked for: a profile, a budget and options, and the limit that follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from lrcompress.errors import PlanError
from lrcompress.messages import listed
from lrcompress.planning.budget import NOTHING, Budget, BudgetKind, Costs
from lrcompress.planning.choices import choice_of, layer_choices
from lrcompress.planning.format_check import allowed_formats
from lrcompress.planning.joint_problem import JointProblem, pose_jointly
from lrcompress.planning.latency import Latencies, latency_table
from lrcompress.planning.layer_filter import reasons_to_skip
from lrcompress.planning.limit import Limit
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.others import FP32, check_others, saved_bytes
from lrcompress.planning.problem import Problem, pose
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.structures import STRUCTURES, Dense


@dataclass(frozen=True, eq=False)
class PlanRequest:
    profile: Profile  # with the corrections of the options
    limits: tuple[Limit, ...]  # of every budget, the first one first
    options: PlanOptions  # resolved
    skipped: Mapping[str, str]  # layers that the options keep dense, and why
    dense: Costs  # of the whole model
    fixed: Costs  # of the parts that no plan changes

    @property
    def budget(self) -> Budget:
        return self.limits[0].budget

    @property
    def kinds(self) -> frozenset[BudgetKind]:
        return frozenset(limit.budget.kind for limit in self.limits)

    @property
    def open_layers(self) -> tuple[LayerProfile, ...]:
        """The layers that may change."""
        return tuple(layer for layer in self.profile.layers if layer.name not in self.skipped)

    @property
    def formats(self) -> tuple[str, ...]:
        """The number formats that weights may have, as texts."""
        return allowed_formats(self.profile, self.kinds, self.options)

    def latencies(self) -> Latencies | None:
        """Return the latencies for a plan; None if the plan needs none.

        It needs none if the budget counts something else, low rank is the only structure and no
        weight is rounded: low rank is never slower than the layer that it replaces at its rank.

        Raises:
            DataError: the options name a latency table that cannot be read.
        """
        options, known = self.options, set(self.profile.structures)
        named = set(options.structures or known) - {"dense", "low_rank"}
        given = "latency" in self.kinds or options.latency_table  # always read
        if not given and not known & named and not self.formats:
            return None
        return _latencies(self.profile, options)

    def problem(self, latencies: Latencies | None) -> Problem | JointProblem:
        """Build the allocation problem for the layers that may change.

        Raises:
            PlanError: a layer's loss is not finite.
        """
        options, timed = self.options, bool({"flops", "latency"} & self.kinds)
        choices = [
            layer_choices(
                layer,
                options.curves,
                multiple_of=options.multiple_of,
                min_rank=options.min_rank,
                bytes_per_param=options.bytes_per_param,
                wanted=options.structures or tuple(STRUCTURES),
                formats=self.formats,
                latencies=latencies if timed else None,
                refuse_slower="flops" in self.kinds,
            )
            for layer in self.open_layers
        ]
        layers, metric = self.open_layers, options.curves
        if len(self.limits) > 1:
            return pose_jointly(layers, choices, metric=metric, limits=self.limits)
        (limit,) = self.limits
        kind = limit.budget.kind
        return pose(layers, choices, metric=metric, kind=kind, room=limit.room)


def plan_request(profile: Profile, budgets: Sequence[Budget], options: PlanOptions) -> PlanRequest:
    """Compute the dense model's costs and the budgets' limits.

    Raises:
        PlanError: the profile does not count what a budget limits, or counts only a part of it; a
            pattern of the options matches no layer; or two budgets limit the same.
    """
    options = options.resolved(profile)
    check_others(profile, options)
    if options.others is None:
        options = replace(options, others=FP32)
    profile = profile.corrected(options.corrections)
    skipped = reasons_to_skip(profile, options.include, options.exclude)
    _check(profile, budgets)
    timed = any(budget.kind == "latency" for budget in budgets)
    latencies = _latencies(profile, options) if timed else None
    dense = {
        layer.name: choice_of(
            layer,
            profile.metric,
            Dense(),
            bytes_per_param=options.bytes_per_param,
            latencies=latencies,
        )
        for layer in profile.layers
    }
    others = _fixed_costs(profile, options)
    fixed = replace(others, bytes=others.bytes - saved_bytes(profile, options))
    limits = []
    for budget in budgets:
        whole, kind = budget.scope == "total", budget.kind
        stays = fixed.plus(dense[name] for name in skipped) if whole else NOTHING
        open_layers = (choice for name, choice in dense.items() if name not in skipped)
        counted = others.plus(dense.values()) if whole else NOTHING.plus(open_layers)
        total = counted.of(kind)
        if total == 0:
            data = kind in ("flops", "latency")
            raise PlanError(
                f"budget {budget}: the profile counts no {kind} in the scope {budget.scope!r}; "
                + ("profile with --data" if data else "use --scope total")
            )
        limits.append(Limit(budget, total, stays.of(kind), budget.limit(total)))
    return PlanRequest(
        profile=profile,
        limits=tuple(limits),
        options=options,
        skipped=skipped,
        dense=others.plus(dense.values()),
        fixed=fixed,
    )


def _check(profile: Profile, budgets: Sequence[Budget]) -> None:
    """Raise PlanError for budgets of what the profile does not count, or two of one kind."""
    for budget in budgets:
        if budget.kind not in ("flops", "latency"):
            continue
        if not profile.examples:
            raise PlanError(
                f"budget {budget}: without data it is not known how often a layer computes, nor "
                "what the network computes besides; profile with --data, or use --budget "
                "params=..."
            )
        if budget.scope == "total" and profile.uncounted:
            raise PlanError(
                f"budget {budget}: the work of {listed(profile.uncounted)} is not counted, so the "
                "work of the whole model is unknown; use --scope compressible, or --budget "
                "params=..."
            )
    kinds = [budget.kind for budget in budgets]
    if len({*kinds}) < len(kinds):
        shown = ", ".join(map(str, budgets))
        raise PlanError(f"budgets {shown}: two limit the same; leave the larger one out")
    if not budgets:
        raise PlanError("a plan needs a budget; give one, such as params=50%")


def _latencies(profile: Profile, options: PlanOptions) -> Latencies:
    return Latencies(
        latency_table(options.latency_table),
        options.provider,
        options.rows,
        options.network_time,
        profile.total_flops_per_example,
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
    time = others
    if options.network_time is not None:
        time = float(round(options.network_time.rest_share * profile.total_flops_per_example))
    return Costs(params=params, flops_per_example=others, bytes=stored, latency_flops=time)


def _buffer_bytes(profile: Profile) -> int:
    """Return the bytes that the model stores besides parameters, in the stored dtype.

    The profile counts both together. The parameters are assumed to have the widest dtype that fits.
    """
    rests = (profile.total_bytes - width * profile.total_params for width in (8, 4, 2, 1))
    return next((rest for rest in rests if rest >= 0), 0)
