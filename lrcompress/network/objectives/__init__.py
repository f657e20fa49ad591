"""How far apart two outputs of a network are, and random probes of that curvature. One objective
is one file and one row of OBJECTIVES.

Each divergence D(f, g) vanishes with its gradient at g = f, so its Hessian there is all that a
small change sees; for a softmax or a sigmoid it is averaged over finite changes (smoothing.py). A
probe v has E[v v^T] = that Hessian, hence E[(v^T J)^T (v^T J)] is the Gauss-Newton
matrix: one backward pass, no labels (Martens 2020, sec. 9).
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
