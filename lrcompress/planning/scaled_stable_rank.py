"""Allocator with ranks proportional to the scaled stable rank (Cuttlefish, Wang et al. 2023)."""

from __future__ import annotations

from math import inf, sqrt

import numpy as np

from lrcompress.planning.problem import Allocation, Problem
from lrcompress.planning.shared_threshold import raise_threshold
from lrcompress.profiling.profile import LayerProfile


def scaled_stable_rank(problem: Problem) -> Allocation:
    """Set rank_l = factor * stable_rank_l * xi_l; one factor for all, dense past break-even.

    Cuttlefish sets xi = full rank / stable rank at initialisation. No checkpoint of that time is
    available, so an i.i.d. matrix of the layer's shape is used: see `iid_stable_rank`.
    """
    keys = []
    for layer, options in zip(problem.layers, problem.choices, strict=True):
        spec = layer.spec
        per_rank = spec.groups * (spec.out_features + spec.in_features)
        target = _scaled(layer) * per_rank
        keys.append(np.array([option.params / target if target > 0 else inf for option in options]))
    return raise_threshold(problem, keys)


def iid_stable_rank(out_features: int, in_features: int) -> float:
    """Return ||W||_F^2 / s_1^2 of a large i.i.d. matrix: mn / (sqrt m + sqrt n)^2."""
    return out_features * in_features / (sqrt(out_features) + sqrt(in_features)) ** 2


def _scaled(layer: LayerProfile) -> float:
    m, n = layer.spec.out_features, layer.spec.in_features
    return layer.measures.stable_rank * min(m, n) / iid_stable_rank(m, n)
