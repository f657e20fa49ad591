"""Uniform allocator: every layer keeps the same share of its weight (SVD-LLM, Wang et al. 2024)."""

from __future__ import annotations

import numpy as np

from lrcompress.planning.problem import Allocation, Problem
from lrcompress.planning.shared_threshold import raise_threshold


def uniform(problem: Problem) -> Allocation:
    """Set rank = floor(share * mn / (m + n)) in each layer, dense at share 1; one share for all."""
    shares = [
        np.array([choice.params for choice in options], dtype=np.float64) / layer.spec.weight_params
        for layer, options in zip(problem.layers, problem.choices, strict=True)
    ]
    return raise_threshold(problem, shares)
