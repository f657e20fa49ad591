"""Objective for independent binary probabilities, such as the output of a sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.network.objectives.objective import PointwiseObjective, relative_entropy
from lrcompress.network.objectives.probabilities import FLOOR
from lrcompress.network.objectives.smoothing import sigmoid_probe


class BernoulliProbabilities(PointwiseObjective):
    """D = sum over features of KL(p || q) in nats between binary probabilities.

    Hessian diag(1 / (p + FLOOR) + 1 / (1 - p + FLOOR)), which is 1 / (p (1 - p)) but bounded.
    Multiplied by the sigmoid's derivative on both sides, it is the Hessian of `bernoulli` by the
    logits. So `bernoulli` probes are drawn and multiplied by the logit's derivative by p.
    """

    name = "bernoulli-probabilities"

    def pointwise(self, dense: Tensor, other: Tensor) -> Tensor:
        p, q = dense.float(), other.float()
        return (relative_entropy(p, q, FLOOR) + relative_entropy(1 - p, 1 - q, FLOOR)).sum(-1)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        p = dense.float().clamp(0, 1)
        logits = (p + FLOOR).log() - (1 - p + FLOOR).log()
        slope = 1 / (p + FLOOR) + 1 / (1 - p + FLOOR)  # of the logit by p
        return sigmoid_probe(logits, weights, generator) * slope

    def choices(self, outputs: Tensor) -> Tensor:
        """Return whether each feature's probability is above one half."""
        return outputs > 0.5
