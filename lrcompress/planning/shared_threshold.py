"""Common part of the heuristic allocators: raise one threshold until the budget is spent."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lrcompress.planning.problem import Allocation, Floats, Problem


def raise_threshold(problem: Problem, keys: Sequence[Floats]) -> Allocation:
    """Give each layer its most expensive choice whose key is within the threshold.

    `keys[l][i]` is the threshold at which layer l takes choice i. Key 0 is ignored, since every
    layer starts with its cheapest choice. The steps are taken in the order of their keys, which is
    equivalent to raising the threshold. If a step no longer fits, its layer stops, and the others
    use the remaining room. Equal keys keep the order of the layers.
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
