"""The contract of an objective: a divergence of outputs and random probes of its curvature."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

Reading = tuple[Tensor, Tensor]  # outputs (examples, *positions, features) and their weights


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

    def agreement(
        self, dense: Tensor, other: Tensor, weights: Tensor
    ) -> tuple[float, float] | None:
        """How many choices are the same in both outputs, and how many there are.

        None where the outputs choose nothing (embeddings, regression).
        """
        return None


def per_example(pointwise: Tensor) -> Tensor:
    """(examples, *positions) -> (examples,) sums."""
    return pointwise.flatten(1).sum(1) if pointwise.dim() > 1 else pointwise


def gaussian(like: Tensor, generator: torch.Generator) -> Tensor:
    """Standard normal values of a shape, on its device, drawn on the CPU in float32."""
    drawn = torch.randn(like.shape, generator=generator, dtype=torch.float32)
    return drawn.to(like.device)


def relative_entropy(p: Tensor, q: Tensor, floor: float) -> Tensor:
    """p log(p / q) - p + q of numbers of at least 0, `floor` added to both; never below 0.

    Written as p (d - log(1 + d)) with d = (q - p) / p, which keeps its digits where q is near p.
    The terms -p + q are 0 in a sum over probabilities, and make the gradient vanish at q = p.
    """
    raised = p + floor
    change = (q.clamp_min(0) - p) / raised
    return raised * (change - torch.log1p(change))
