"""Objective for probabilities of mutually exclusive classes, such as the output of a softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.network.objectives.objective import Objective, per_example, relative_entropy
from lrcompress.network.objectives.smoothing import softmax_probe

FLOOR = 1e-7  # 1 + FLOOR differs from 1 in float32, and a softmax rarely returns less


class Probabilities(Objective):
    """D = KL(p || q) in nats for probabilities that sum to one over the features.

    Hessian diag(1 / (p + FLOOR)) - 1 1^T on the simplex. Multiplied by the softmax's Jacobian on
    both sides, it is the Hessian of `kl` by the logits log p, whose probes are used. FLOOR bounds
    it where a probability is 0.
    """

    name = "probabilities"

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        pointwise = relative_entropy(dense.float(), other.float(), FLOOR).sum(-1)
        return per_example(pointwise * weights)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        p = dense.float().clamp_min(0) + FLOOR
        return softmax_probe(p.log(), weights, generator) / p

    def agreement(
        self, dense: Tensor, other: Tensor, weights: Tensor
    ) -> tuple[float, float] | None:
        """Compare the most probable class at each position."""
        same = (dense.argmax(-1) == other.argmax(-1)).to(weights.dtype) * weights
        return float(same.sum()), float(weights.sum())
