"""How far apart two outputs of the network are, and the random probes of its curvature.

Each divergence D(f, g) vanishes with its gradient at g = f, so its Hessian there is all that a
small change sees; for a softmax or a sigmoid it is averaged over finite changes (smoothing.py). A
probe v has E[v v^T] = that Hessian, hence E[(v^T J)^T (v^T J)] is the Gauss-Newton
matrix: one backward pass, no labels (Martens 2020, sec. 9).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.profiling.objectives.bernoulli import Bernoulli
from lrcompress.profiling.objectives.bernoulli_probabilities import BernoulliProbabilities
from lrcompress.profiling.objectives.contract import Objective
from lrcompress.profiling.objectives.probabilities import Probabilities
from lrcompress.profiling.objectives.smoothing import softmax_probe

__all__ = ["OBJECTIVES", "Cosine", "KullbackLeibler", "Objective", "Squared"]


class KullbackLeibler(Objective):
    """KL(softmax f || softmax g) in nats, for logits f and g.

    Hessian diag(p) - p p^T with p = softmax f; probes of its mean over finite changes of f
    (`smoothing`).
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
        """Compares the class of the largest score of each position."""
        same = (dense.argmax(-1) == other.argmax(-1)).to(weights.dtype) * weights
        return float(same.sum()), float(weights.sum())


class Cosine(Objective):
    """D = 1 - cos(f, g), for embeddings; Hessian (I - u u^T) / |f|^2 with u = f / |f|."""

    name = "cosine"

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        cosine = functional.cosine_similarity(dense.float(), other.float(), dim=-1)
        distance = (1 - cosine) * weights
        return distance.flatten(1).sum(1) if distance.dim() > 1 else distance

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        f = dense.float()
        norm = f.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        u = f / norm
        z = torch.randn(f.shape, generator=generator, dtype=f.dtype).to(f.device)
        v: Tensor = (z - u * (u * z).sum(-1, keepdim=True)) / norm * weights.unsqueeze(-1)
        return v


class Squared(Objective):
    """D = 1/2 |f - g|^2 per output feature's scale of one, for anything else."""

    name = "squared"

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        distance = 0.5 * (dense.float() - other.float()).square().sum(-1) * weights
        return distance.flatten(1).sum(1) if distance.dim() > 1 else distance

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(dense.shape, generator=generator, dtype=torch.float32)
        return z.to(dense.device) * weights.unsqueeze(-1)


OBJECTIVES: dict[str, Objective] = {
    "kl": KullbackLeibler(),
    "cosine": Cosine(),
    "squared": Squared(),
    "probabilities": Probabilities(),
    "bernoulli": Bernoulli(),
    "bernoulli-probabilities": BernoulliProbabilities(),
}
