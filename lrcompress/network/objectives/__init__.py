"""Objectives: divergences between two outputs of a network, and random probes of their curvature.

Each objective is one file and one row of OBJECTIVES. A divergence D(f, g) and its gradient vanish
at g = f, so only its Hessian there matters for a small change. For a softmax or a sigmoid the
Hessian is averaged over finite changes (smoothing.py). A probe v has E[v v^T] = that Hessian, so
E[(v^T J)^T (v^T J)] is the Gauss-Newton matrix: one backward pass, no labels (Martens 2020,
sec. 9).
"""

from __future__ import annotations

from lrcompress.network.objectives.bernoulli import Bernoulli
from lrcompress.network.objectives.bernoulli_probabilities import BernoulliProbabilities
from lrcompress.network.objectives.cosine import Cosine
from lrcompress.network.objectives.kullback_leibler import KullbackLeibler
from lrcompress.network.objectives.objective import Objective
from lrcompress.network.objectives.probabilities import Probabilities
from lrcompress.network.objectives.squared import Squared

__all__ = ["OBJECTIVES", "Objective"]

OBJECTIVES: dict[str, Objective] = {
    "kl": KullbackLeibler(),
    "cosine": Cosine(),
    "squared": Squared(),
    "probabilities": Probabilities(),
    "bernoulli": Bernoulli(),
    "bernoulli-probabilities": BernoulliProbabilities(),
}
