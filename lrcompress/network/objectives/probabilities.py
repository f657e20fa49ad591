"""Objective for probabilities of mutually exclusive classes, such as the output of a softmax."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.network.objectives.objective import PointwiseObjective, relative_entropy
from lrcompress.network.objectives.smoothing import softmax_probe

FLOOR = 1e-7  # 1 + FLOOR differs from 1 in float32, and a softmax rarely returns less


class Probabilities(PointwiseObjective):
    """D = KL(p || q) in nats for probabilities that sum to one over the features.

    Hessian diag(1 / (p + FLOOR)) - 1 1^T on the simplex. Multiplied by the softmax's Jacobian on
    both sides, it is the Hessian of `kl` by the logits log p, whose probes are used. FLOOR bounds
    it where a probability is 0.
    """

    name = "probabilities"

    def pointwise(self, dense: Tensor, other: Tensor) -> Tensor:
        return relative_entropy(dense.float(), other.float(), FLOOR).sum(-1)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        p = dense.float().clamp_min(0) + FLOOR
        return softmax_probe(p.log(), weights, generator) / p

    def choices(self, outputs: Tensor) -> Tensor:
        """Return the most probable class at each position."""
        return outputs.argmax(-1, keepdim=True)
