"""Probabilities of classes that exclude each other, as a softmax gives them."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.profiling.objectives.contract import (
    Objective,
    gaussian,
    per_example,
    relative_entropy,
)

FLOOR = 1e-7  # float32 holds 1 + FLOOR, and softmax gives little below it


class Probabilities(Objective):
    """D = KL(p || q) in nats for probabilities that sum to one over the features.

    Hessian diag(1 / (p + FLOOR)): through the softmax's Jacobian it is the curvature that the
    logits have under `kl`. FLOOR bounds it where a probability is 0.
    """

    name = "probabilities"

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        pointwise = relative_entropy(dense.float(), other.float(), FLOOR).sum(-1)
        return per_example(pointwise * weights)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        scale = (dense.float().clamp_min(0) + FLOOR).rsqrt()
        return gaussian(dense, generator) * scale * weights.unsqueeze(-1)

    def agreement(
        self, dense: Tensor, other: Tensor, weights: Tensor
    ) -> tuple[float, float] | None:
        """By the most probable class of each position."""
        same = (dense.argmax(-1) == other.argmax(-1)).to(weights.dtype) * weights
        return float(same.sum()), float(weights.sum())
