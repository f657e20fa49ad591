"""The Kullback-Leibler divergence between softmax distributions, for logits of classes."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.network.objectives.objective import PointwiseObjective
from lrcompress.network.objectives.smoothing import softmax_probe


class KullbackLeibler(PointwiseObjective):
    """KL(softmax f || softmax g) in nats, for logits f and g.

    Hessian diag(p) - p p^T with p = softmax f. Probes are drawn from its mean over finite changes
    of f (`smoothing`).
    """

    name = "kl"

    def pointwise(self, dense: Tensor, other: Tensor) -> Tensor:
        p = functional.log_softmax(dense.float(), -1)
        q = functional.log_softmax(other.float(), -1)
        return (p.exp() * (p - q)).sum(-1)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        return softmax_probe(dense, weights, generator)

    def choices(self, outputs: Tensor) -> Tensor:
        """Return the class with the largest score at each position."""
        return outputs.argmax(-1, keepdim=True)
