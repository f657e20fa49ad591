"""The heuristic allocators: raise one threshold for all layers until the budget is spent."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np

from lrcompress.planning.problem import Allocation, Floats, Problem
from lrcompress.structures import Quantised


def uniform(problem: Problem) -> Allocation:
    """Set rank = floor(share * mn / (m + n)) in each layer, dense at share 1; one share for all.

    Every layer keeps the same share of its weight (SVD-LLM, Wang et al. 2024). In a layer with
    number formats, that share is of the cost of its best choice.
    """
    keys = []
    for index, layer in enumerate(problem.layers):
        if any(isinstance(choice.structure, Quantised) for choice in problem.choices[index]):
            cost = problem.costs[index].astype(np.float64)
            keys.append(cost / max(cost[-1], 1.0))
        else:
            keys.append(_params(problem, index) / layer.spec.weight_params)
    return _raise_threshold(problem, keys)


def energy(problem: Problem) -> Allocation:
    """Set rank_l = min{k: sum_{i<=k} s_i^2 >= t sum_i s_i^2} in the plan's metric; one t for all.

    A layer moves from choice i - 1 to choice i once t exceeds the energy that choice i - 1 keeps.
    """
    keys = []
    for loss, removal in zip(problem.losses, problem.removal_losses, strict=True):
        kept_minus_one = -loss / removal if removal > 0 else -loss  # avoids rounding near share 1
        keys.append(np.r_[-np.inf, kept_minus_one[:-1]])
    return _raise_threshold(problem, keys)


def scaled_stable_rank(problem: Problem) -> Allocation:
    """Set rank_l = factor * stable_rank_l * xi_l; one factor for all, dense past break-even.

    Cuttlefish (Wang et al. 2023) sets xi = full rank / stable rank at initialisation. No checkpoint
    of that time is available, so an i.i.d. matrix of the layer's shape is used.
    """
    keys = []
    for index, layer in enumerate(problem.layers):
        m, n = layer.spec.out_features, layer.spec.in_features
        rank = layer.measures.stable_rank * min(m, n) / iid_stable_rank(m, n)
        target = rank * (layer.spec.groups * (m + n))
        params = _params(problem, index)
        keys.append(params / target if target > 0 else np.full(len(params), np.inf))
    return _raise_threshold(problem, keys)


def iid_stable_rank(out_features: int, in_features: int) -> float:
    """Return ||W||_F^2 / s_1^2 of a large i.i.d. matrix: mn / (sqrt m + sqrt n)^2."""
    return out_features * in_features / (sqrt(out_features) + sqrt(in_features)) ** 2


def _params(problem: Problem, index: int) -> Floats:
    return np.array([choice.params for choice in problem.choices[index]], dtype=np.float64)


def _raise_threshold(problem: Problem, keys: Sequence[Floats]) -> Allocation:
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
    stopped: set[int] = set()
    left = problem.room - problem.smallest_cost
    for index, cost in zip(layer[order].tolist(), step[order].tolist(), strict=True):
        if index in stopped:
            continue
        if cost > left:
            stopped.add(index)
        else:
            chosen[index] += 1
            left -= cost
    return problem.allocation(chosen)
