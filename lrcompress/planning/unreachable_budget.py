"""The error for a budget that no plan meets: the smallest reachable one, and what cannot change."""

from __future__ import annotations

from collections.abc import Mapping
from math import ceil

from lrcompress.errors import BudgetError
from lrcompress.layers import LeftAlone
from lrcompress.planning.account import Account
from lrcompress.planning.budget import Budget, amount_in_words
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.left_alone import left_alone_groups, left_alone_in_words
from lrcompress.profiling.profile import Profile

NOUNS = {"params": "parameters", "flops": "FLOPs", "bytes": "bytes", "latency": "time"}


def unreachable(
    profile: Profile,
    budget: Budget,
    options: PlanOptions,
    account: Account,
    smallest: int,
    skipped: Mapping[str, str],
) -> BudgetError:
    """Build the error for a budget that no plan meets.

    smallest: cost of the smallest plan. skipped: layers that the options keep dense, and why.
    """
    percent = ceil(1000 * smallest / account.counted_dense) / 10  # rounded up, to be reachable
    steps = ["raise the budget"]
    if options.include or options.exclude:
        steps.append("--include more layers")
    if options.min_rank > 1 or (options.multiple_of or 1) > 1:
        steps.append("lower --min-rank or --multiple-of")
    return BudgetError(
        f"budget {budget}: cannot be met; the smallest reachable is {percent:g} % "
        f"({amount_in_words(budget.kind, smallest)}){_stays(profile, budget, account, skipped)}; "
        f"{' or '.join(steps)}"
    )


def _stays(profile: Profile, budget: Budget, account: Account, skipped: Mapping[str, str]) -> str:
    """Return a clause on the share that no plan changes and its parts, most parameters first."""
    if not account.counted_fixed:
        return ""
    share = f"{100 * account.counted_fixed / account.counted_dense:.3g} %"
    kept = (profile[name].spec for name in skipped)
    excluded = (LeftAlone(x.name, x.kind, x.weight_params, skipped[x.name]) for x in kept)
    groups = left_alone_groups((*profile.left_alone, *excluded))
    clause = f"; {share} of the {NOUNS[budget.kind]} cannot change"
    if not groups:
        return clause
    return f"{clause} (left alone: {left_alone_in_words(groups, profile.total_params)})"
