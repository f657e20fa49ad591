"""Half the squared distance, for all other kinds of outputs."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.network.objectives.objective import PointwiseObjective, gaussian


class Squared(PointwiseObjective):
    """D = 1/2 |f - g|^2, with every output feature at a scale of one; for all other outputs."""

    name = "squared"

    def pointwise(self, dense: Tensor, other: Tensor) -> Tensor:
        return 0.5 * (dense.float() - other.float()).square().sum(-1)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        return gaussian(dense, generator) * weights.unsqueeze(-1)
