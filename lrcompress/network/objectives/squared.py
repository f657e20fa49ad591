"""Half the squared distance, for all other kinds of outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.network.objectives.objective import Objective


class Squared(Objective):
    """D = 1/2 |f - g|^2, with every output feature at a scale of one; for all other outputs."""

    name = "squared"

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        distance = 0.5 * (dense.float() - other.float()).square().sum(-1) * weights
        return distance.flatten(1).sum(1) if distance.dim() > 1 else distance

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        z = torch.randn(dense.shape, generator=generator, dtype=torch.float32)
        return z.to(dense.device) * weights.unsqueeze(-1)
