"""Objective for independent binary logits, before a sigmoid."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.network.objectives.objective import Objective, per_example
from lrcompress.network.objectives.smoothing import sigmoid_probe


class Bernoulli(Objective):
    """D = sum over features of KL(sigmoid f || sigmoid g) in nats, for binary logits.

    Hessian diag(p (1 - p)) with p = sigmoid f. Probes are drawn from its mean over finite changes
    of f (`smoothing`).
    """

    name = "bernoulli"

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        f, g = dense.float(), other.float()
        # D(f, g) = D(-f, -g). With f <= 0, no two values near one are subtracted
        flip = torch.where(f > 0, -1.0, 1.0)
        f, g = f * flip, g * flip
        pointwise = functional.softplus(g) - functional.softplus(f) - torch.sigmoid(f) * (g - f)
        return per_example(pointwise.sum(-1) * weights)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        return sigmoid_probe(dense, weights, generator)

    def agreement(
        self, dense: Tensor, other: Tensor, weights: Tensor
    ) -> tuple[float, float] | None:
        """Compare the sign of each feature."""
        same = ((dense > 0) == (other > 0)).to(weights.dtype) * weights.unsqueeze(-1)
        return float(same.sum()), float(weights.sum()) * dense.shape[-1]
