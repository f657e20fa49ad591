"""What the rule-of-thumb allocators share: one threshold for all layers, raised until it costs
what the budget allows."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrcompress.planning.problem import Allocation, Floats, Problem


def raise_threshold(problem: Problem, keys: Sequence[Floats]) -> Allocation:
    """Give each layer its costliest choice whose key is within the threshold.

    `keys[l][i]` is the threshold at which layer l takes its choice i; key 0 is not looked at, since
    every layer starts with its cheapest choice. The steps are taken in the order of their keys,
    which is exactly raising the threshold; a step that no longer fits stops its layer, and the
    others use up what is left. Equal keys go in the order of the layers.
    """
    if not keys:
        return problem.allocation(())
    rising = [np.maximum.accumulate(key[1:]) for key in keys]
    layer = np.repeat(np.arange(len(rising)), [len(key) for key in rising])
    step = np.concatenate([np.diff(cost) for cost in problem.costs])
    order = np.argsort(np.concatenate(rising), kind="stable")

    chosen = [0] * len(problem.costs)
    stopped = [False] * len(problem.costs)
    left = problem.room - problem.smallest_cost
    for index, cost in zip(layer[order].tolist(), step[order].tolist(), strict=True):
        if left == 0:
            break
        if stopped[index]:
            continue
        if cost > left:
            stopped[index] = True
        else:
            chosen[index] += 1
            left -= cost
    return problem.allocation(chosen)
