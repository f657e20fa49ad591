"""Planning: choose one structure for each layer from a profile and a budget."""

from __future__ import annotations

from collections.abc import Sequence

from lrcompress.errors import PlanError
from lrcompress.planning.account import open_account
from lrcompress.planning.allocators import ALLOCATORS
from lrcompress.planning.budget import Budget
from lrcompress.planning.choices import choice_of
from lrcompress.planning.latency_lookup import latencies_for, slow_layers
from lrcompress.planning.layer_filter import reasons_to_skip
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan, assemble
from lrcompress.planning.problem import proof_digest
from lrcompress.planning.problem_of_profile import problem_of
from lrcompress.planning.unreachable_budget import unreachable
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Dense

DEFAULT_OPTIONS = PlanOptions()


def plan(profile: Profile, budget: Budget | str, options: PlanOptions = DEFAULT_OPTIONS) -> Plan:
    """Choose a structure for each layer so that the model stays within the budget.

    Raises:
        PlanError: the budget or the options are malformed, a pattern matches no layer, or a
            layer's loss is not finite.
        BudgetError: no plan meets the budget; the message names the smallest that can be met.
    """
    if isinstance(budget, str):
        budget = Budget.parse(budget)
    options = options.resolved(profile)
    profile = profile.corrected(options.corrections)
    assert options.metric is not None
    assert options.allocator is not None
    _refuse_unmeasured(profile, options)
    skipped = reasons_to_skip(profile, options.include, options.exclude)
    account = open_account(profile, budget, options, skipped)

    latencies = latencies_for(profile, budget, options)
    open_layers = [layer for layer in profile.layers if layer.name not in skipped]
    problem = problem_of(open_layers, budget, options, account, latencies)
    if problem.smallest_cost > problem.room:
        smallest = account.counted_fixed + problem.smallest_cost
        raise unreachable(profile, budget, options, account, smallest, skipped)

    allocation = ALLOCATORS[options.allocator](problem)
    bound = allocation.lower_bound
    chosen = {
        layer.name: choices[index]
        for layer, choices, index in zip(
            open_layers, problem.choices, allocation.chosen, strict=True
        )
    }
    for layer in profile.layers:
        if layer.name in skipped:
            dense = Dense(reason=skipped[layer.name])
            chosen[layer.name] = choice_of(
                layer, options.curves, dense, bytes_per_param=options.bytes_per_param
            )
    choices = [chosen[layer.name] for layer in profile.layers]
    return assemble(
        profile,
        budget,
        options,
        account,
        skipped=skipped,
        choices=choices,
        lower_bound=bound,
        proven_for="" if bound is None else proof_digest(problem, bound),
        warnings=slow_layers(profile.layers, choices, latencies),
    )


def _refuse_unmeasured(profile: Profile, options: PlanOptions) -> None:
    """Raise PlanError if a requested structure has no loss curve in the profile."""
    free = ("dense", "low_rank")
    measured = {
        points[0].structure.type_name
        for layer in profile.layers
        if layer.curves_metric == options.curves
        for points in layer.curves
    }
    explored = {*free, *profile.structures}
    for name in options.structures:
        if name not in explored:
            raise PlanError(
                f"the profile has no loss curves of {_spelled([name])}, only of "
                f"{_spelled(sorted(measured) or ['low_rank'])}; profile again with "
                f"--structures {_spelled([name])}"
            )
    if options.structures and not measured and not set(options.structures) & set(free):
        raise PlanError(
            f"no layer has a loss curve of {_spelled(options.structures)} in the metric "
            f"{options.curves!r}; add low-rank, or leave --metric out"
        )


def _spelled(names: Sequence[str]) -> str:
    """Format names as the command line spells them."""
    return ", ".join(names).replace("_", "-")
