"""The interface of an objective: a divergence of outputs and random probes of its curvature."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

Reading = tuple[Tensor, Tensor]  # outputs (examples, *positions, features) and their weights
Agreement = tuple[float, float]  # number of choices that are the same, and of all choices


class Objective(ABC):
    """A divergence between outputs, summed over positions, per example.

    Outputs are (examples, *positions, features); `weights` (examples, *positions) are 0 on padding.
    """

    name: str

    @abstractmethod
    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        """Return the divergence of `other` from `dense`: (examples,)."""

    @abstractmethod
    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Return v of the outputs' shape with E[v v^T] = Hessian of the divergence at `dense`."""

    @abstractmethod
    def agreement(self, dense: Tensor, other: Tensor, weights: Tensor) -> Agreement | None:
        """Return the number of choices that are the same in both outputs, and the number of all.

        None where the outputs make no choices (embeddings, regression).
        """


class PointwiseObjective(Objective):
    """An objective that compares each position of two outputs alone."""

    @abstractmethod
    def pointwise(self, dense: Tensor, other: Tensor) -> Tensor:
        """Return the divergence at each position, without padding weights: (examples, *positions).

        dense, other: as the network returned them. They are compared in float32; the conversions
        are made where they are read, because copies of logits over a vocabulary are large.
        """

    def choices(self, outputs: Tensor) -> Tensor | None:
        """Return what the outputs choose: (examples, *positions, choices); None: they do not."""
        return None

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        weighted = self.pointwise(dense, other) * weights
        return weighted.flatten(1).sum(1) if weighted.dim() > 1 else weighted

    def agreement(self, dense: Tensor, other: Tensor, weights: Tensor) -> Agreement | None:
        chosen, others = self.choices(dense), self.choices(other)
        if chosen is None or others is None:
            return None
        same = torch.eq(chosen, others).to(weights.dtype) * weights.unsqueeze(-1)
        return float(same.sum()), float(weights.sum()) * chosen.shape[-1]


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """Return float32 standard normal values of `like`'s shape and device, drawn on the CPU."""
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float32)
    return drawn.to(like.device)


def relative_entropy(p: Tensor, q: Tensor, floor: float) -> Tensor:
    """Return p log(p / q) - p + q >= 0 for p, q >= 0, with `floor` added to both.

    Computed as p (d - log(1 + d)) with d = (q - p) / p, which is accurate where q is near p. The
    terms -p + q sum to 0 over probabilities, and make the gradient vanish at q = p.
    """
    raised = p + floor
    change = (q.clamp_min(0) - p) / raised
    return raised * (change - torch.log1p(change))
