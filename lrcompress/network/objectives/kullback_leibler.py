"""The Kullback-Leibler divergence between softmax distributions, for logits of classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.network.objectives.objective import Objective
from lrcompress.network.objectives.smoothing import softmax_probe


class KullbackLeibler(Objective):
    """KL(softmax f || softmax g) in nats, for logits f and g.

    Hessian diag(p) - p p^T with p = softmax f. Probes are drawn from its mean over finite changes
    of f (`smoothing`).
    """

    name = "kl"

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        p = functional.log_softmax(dense.float(), -1)
        q = functional.log_softmax(other.float(), -1)
        pointwise = (p.exp() * (p - q)).sum(-1) * weights
        return pointwise.flatten(1).sum(1) if pointwise.dim() > 1 else pointwise

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        return softmax_probe(dense, weights, generator)

    def agreement(
        self, dense: Tensor, other: Tensor, weights: Tensor
    ) -> tuple[float, float] | None:
        """Compare the class with the largest score at each position."""
        same = (dense.argmax(-1) == other.argmax(-1)).to(weights.dtype) * weights
        return float(same.sum()), float(weights.sum())
