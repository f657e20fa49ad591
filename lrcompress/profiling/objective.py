"""How far apart two outputs of the network are, and the random probes of its curvature.

Each divergence D(f, g) vanishes with its gradient at g = f, so its Hessian there is all that a
small change sees. A probe v has E[v v^T] = Hessian, hence E[(v^T J)^T (v^T J)] is the Gauss-Newton
matrix: one backward pass, no labels (Martens 2020, sec. 9).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from math import sqrt

import torch
from torch import Tensor
from torch.nn import functional


class Objective(ABC):
    """Outputs are (examples, *positions, features); `weights` (examples, *positions) is 0 on
    padding. Divergences are summed over positions, per example."""

    name: str

    @abstractmethod
    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        """(examples,) divergence of `other` from `dense`."""

    @abstractmethod
    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        """v of the outputs' shape with E[v v^T] = Hessian of the divergence at `dense`."""


SMOOTHING = 1.0  # of the spread of the centred logits: how far compression may move them
ROWS = 128  # positions whose probes are drawn at a time: over a vocabulary every copy is large


class KullbackLeibler(Objective):
    """KL(softmax f || softmax g) in nats, for logits f and g.

    Its Hessian diag(p) - p p^T at p = softmax f all but vanishes where the network is certain,
    although a finite change of the logits is not free there. A Gaussian change d ~ N(0, s^2 I) of
    the logits costs exactly E[D] = 1/2 s^2 tr(H_s), where H_s is the mean of the Hessian over
    softmax(f + sqrt(t) s z) with z ~ N(0, I) and t uniform on [0, 1] (the heat equation). The
    probes are drawn from H_s; s is `SMOOTHING` times the root mean square of the centred logits.
    """

    name = "kl"

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        p = functional.log_softmax(dense.float(), -1)
        q = functional.log_softmax(other.float(), -1)
        pointwise = (p.exp() * (p - q)).sum(-1) * weights
        return pointwise.flatten(1).sum(1) if pointwise.dim() > 1 else pointwise

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        rows = dense.flatten(0, -2)  # (positions, classes)
        scale = SMOOTHING * _spread(rows, weights.flatten())
        v = torch.empty(rows.shape, dtype=torch.float32, device=rows.device)
        for part, out in zip(torch.split(rows, ROWS), torch.split(v, ROWS), strict=True):
            out.copy_(_softmax_probe(part.float(), scale, generator))
        return v.mul_(weights.reshape(-1, 1)).reshape(dense.shape)


def _softmax_probe(logits: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    """v ~ N(0, diag(q) - q q^T), q = softmax(logits + noise); (positions, classes)."""
    time = torch.rand((len(logits), 1), generator=generator).sqrt() * scale
    noise = torch.randn(logits.shape, generator=generator)
    q = functional.softmax(logits + (time * noise).to(logits.device), -1)
    drawn = q.sqrt() * torch.randn(logits.shape, generator=generator).to(logits.device)
    return drawn - q * drawn.sum(-1, keepdim=True)


def _spread(rows: Tensor, weights: Tensor) -> float:
    """Root mean square of the centred logits over the positions that count."""
    counted = rows[weights > 0]
    if not len(counted):
        return 0.0
    parts = torch.split(counted, ROWS)
    total = sum(float(part.float().var(-1, correction=0).sum()) for part in parts)
    return sqrt(total / len(counted))


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
}
