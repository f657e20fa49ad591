"""Energy allocator: every layer gets the smallest rank that keeps the same share of its energy."""

from __future__ import annotations

import numpy as np

from lrcompress.planning.problem import Allocation, Problem
from lrcompress.planning.shared_threshold import raise_threshold


def energy(problem: Problem) -> Allocation:
    """Set rank_l = min{k: sum_{i<=k} s_i^2 >= t sum_i s_i^2} in the plan's metric; one t for all.

    A layer moves from choice i - 1 to choice i once t exceeds the energy that choice i - 1 keeps.
    """
    keys = []
    for loss, removal in zip(problem.losses, problem.removal_losses, strict=True):
        kept_minus_one = -loss / removal if removal > 0 else -loss  # avoids rounding near share 1
        keys.append(np.r_[-np.inf, kept_minus_one[:-1]])
    return raise_threshold(problem, keys)
