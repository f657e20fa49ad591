"""Planning: choose one structure for each layer from a profile and a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil

from lrcompress.errors import BudgetError, PlanError
from lrcompress.layers import LeftAlone
from lrcompress.planning.allocators import ALLOCATORS
from lrcompress.planning.budget import Budget, amount_in_words, parsed_budgets
from lrcompress.planning.choices import choice_of
from lrcompress.planning.format_check import allowed_formats, check_formats
from lrcompress.planning.joint_allocator import allocate_jointly, allocate_mixed, least_cost
from lrcompress.planning.joint_problem import JointProblem
from lrcompress.planning.limit import Limit
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.others import others_choices
from lrcompress.planning.plan import Plan, assemble
from lrcompress.planning.problem import Allocation, Problem
from lrcompress.planning.request import PlanRequest, plan_request
from lrcompress.profiling.left_alone import left_alone_groups, left_alone_in_words
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Dense

DEFAULT_OPTIONS = PlanOptions()
NOUNS = {"params": "parameters", "flops": "FLOPs", "bytes": "bytes", "latency": "time"}


def plan(
    profile: Profile,
    budget: Budget | str | Sequence[Budget | str],
    options: PlanOptions = DEFAULT_OPTIONS,
) -> Plan:
    """Choose a structure for each layer so that the model stays within the budget, or all budgets.

    Raises:
        PlanError: the budget or the options are malformed, a pattern matches no layer, or a
            layer's loss is not finite.
        BudgetError: no plan meets the budgets; the message names the smallest that can be met.
    """
    budgets = parsed_budgets(budget)
    kinds = {one.kind for one in budgets}
    if options.loss_metric is None and set(allowed_formats(profile, kinds, options)) - {"fp32"}:
        # Only in the profile's metric is it known what number formats lose
        options = replace(options, loss_metric=profile.metric)
    options = options.resolved(profile)
    assert options.allocator is not None
    _refuse_unmeasured(profile, options)
    check_formats(profile, budgets, options)
    found, refused = [], None
    for format in others_choices(profile, budgets, options):
        try:
            found.append(_planned(profile, budgets, replace(options, others=format)))
        except BudgetError as error:
            refused = error  # the last one is of the smallest format
    if not found:
        assert refused is not None
        raise refused
    return min(found, key=lambda made: made.predicted_loss + made.others_loss)


def _planned(profile: Profile, budgets: Sequence[Budget], options: PlanOptions) -> Plan:
    """Return the plan with one format of the other weights."""
    assert options.allocator is not None
    request = plan_request(profile, budgets, options)
    latencies = request.latencies()
    problem = request.problem(latencies)
    allocation = _allocation(request, problem, options.allocator)
    bound = allocation.lower_bound
    chosen = iter(
        choices[index] for choices, index in zip(problem.choices, allocation.chosen, strict=True)
    )
    choices = [
        choice_of(
            layer,
            options.curves,
            Dense(reason=request.skipped[layer.name]),
            bytes_per_param=options.bytes_per_param,
            latencies=latencies,
        )
        if layer.name in request.skipped
        else next(chosen)
        for layer in request.profile.layers
    ]
    proof = "" if bound is None else problem.proof(bound)
    return assemble(request, choices, latencies, lower_bound=bound, proven_for=proof)


def _allocation(
    request: PlanRequest, problem: Problem | JointProblem, allocator: str
) -> Allocation:
    """Raises BudgetError if no allocation within the budgets is found."""
    if isinstance(problem, Problem):
        (limit,) = request.limits
        if problem.smallest_cost > problem.room:
            raise _unreachable(request, [(limit, problem.smallest_cost)])
        return ALLOCATORS[allocator](problem)
    smallest = zip(request.limits, problem.smallest_costs.tolist(), strict=True)
    missed = [(limit, least) for limit, least in smallest if least > limit.room]
    if missed:
        raise _unreachable(request, missed)
    if allocator == "global":
        found = allocate_jointly(problem)
    else:
        found = allocate_mixed(problem, ALLOCATORS[allocator])
    if found is None:
        raise _unreachable_together(request, problem)
    return found


def _refuse_unmeasured(profile: Profile, options: PlanOptions) -> None:
    """Raise PlanError if a requested structure has no loss curve in the profile."""
    free = ("dense", "low_rank")
    measured = {
        points[0].structure.type_name
        for layer in profile.layers
        if layer.curves_metric == options.curves
        for points in layer.curves
    } - {"quantised"}
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


def _unreachable(request: PlanRequest, missed: Sequence[tuple[Limit, int]]) -> BudgetError:
    """Return the error for budgets that no plan meets.

    missed: each such limit, with the least cost of what may change.
    """
    options, several = request.options, len(missed) > 1
    steps = ["raise all of them" if several else "raise the budget"]
    if options.include or options.exclude:
        steps.append("--include more layers")
    if options.min_rank > 1 or (options.multiple_of or 1) > 1:
        steps.append("lower --min-rank or --multiple-of")
    stays = [_stays(request, limit, named=not at) for at, (limit, _) in enumerate(missed)]
    said = [
        f"budget {limit.budget}: cannot be met; the smallest reachable{' alone' * several} is "
        f"{_smallest_in_words(limit, limit.fixed + least)}{clause}"
        for (limit, least), clause in zip(missed, stays, strict=True)
    ]
    return BudgetError("; ".join([*said, " or ".join(steps)]))


def _smallest_in_words(limit: Limit, smallest: int) -> str:
    kind = limit.budget.kind
    percent = ceil(1000 * smallest / limit.dense) / 10  # rounded up, to be reachable
    if kind == "latency":
        layers = "" if limit.budget.scope == "total" else "layers' "
        return f"{percent:g} % of the {layers}dense latency"
    return f"{percent:g} % ({amount_in_words(kind, smallest, limit.dense)})"


def _unreachable_together(request: PlanRequest, problem: JointProblem) -> BudgetError:
    """Return the error for budgets that can be met alone, but that no plan was found for."""
    shown = " and ".join(str(limit.budget) for limit in request.limits)
    reachable = []
    if len(request.limits) == 2:
        for index, limit in enumerate(request.limits):
            least = least_cost(problem, index)
            if least is not None:
                percent = ceil(1000 * (least + limit.fixed) / limit.dense) / 10
                other = request.limits[1 - index].budget
                reachable.append(f"within {other}, {limit.budget.kind}={percent:g}% is reachable")
    details = "".join(f"; {one}" for one in reachable)
    return BudgetError(f"budgets {shown}: cannot be met together{details}; raise one of them")


def _stays(request: PlanRequest, limit: Limit, *, named: bool) -> str:
    """Return a clause on the share that no plan changes.

    named: with its parts, those with the most parameters first.
    """
    if not limit.fixed:
        return ""
    share = f"{100 * limit.fixed / limit.dense:.3g} %"
    clause = f"; {share} of the {NOUNS[limit.budget.kind]} cannot change"
    if not named:
        return clause
    profile, skipped = request.profile, request.skipped
    kept = (profile[name].spec for name in skipped)
    excluded = (LeftAlone(x.name, x.kind, x.weight_params, skipped[x.name]) for x in kept)
    groups = left_alone_groups((*profile.left_alone, *excluded))
    parts = left_alone_in_words(groups, profile.total_params)
    return f"{clause} (left alone: {parts})" if groups else clause
