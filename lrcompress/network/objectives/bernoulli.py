"""Objective for independent binary logits, before a sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.network.objectives.objective import PointwiseObjective
from lrcompress.network.objectives.smoothing import sigmoid_probe


class Bernoulli(PointwiseObjective):
    """D = sum over features of KL(sigmoid f || sigmoid g) in nats, for binary logits.

    Hessian diag(p (1 - p)) with p = sigmoid f. Probes are drawn from its mean over finite changes
    of f (`smoothing`).
    """

    name = "bernoulli"

    def pointwise(self, dense: Tensor, other: Tensor) -> Tensor:
        # D(f, g) = D(-f, -g). With f <= 0, no two values near one are subtracted
        flip = torch.where(dense > 0, -1.0, 1.0)
        f, g = dense.float() * flip, other.float() * flip
        terms = functional.softplus(g) - functional.softplus(f) - torch.sigmoid(f) * (g - f)
        return terms.sum(-1)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        return sigmoid_probe(dense, weights, generator)

    def choices(self, outputs: Tensor) -> Tensor:
        """Return the sign of each feature."""
        return outputs > 0
