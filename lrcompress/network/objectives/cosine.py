"""The cosine distance, for embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.network.objectives.objective import PointwiseObjective, gaussian


class Cosine(PointwiseObjective):
    """D = 1 - cos(f, g), for embeddings; Hessian (I - u u^T) / |f|^2 with u = f / |f|."""

    name = "cosine"

    def pointwise(self, dense: Tensor, other: Tensor) -> Tensor:
        return 1 - functional.cosine_similarity(dense.float(), other.float(), dim=-1)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        f = dense.float()
        norm = f.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        u = f / norm
        z = gaussian(f, generator)
        v: Tensor = (z - u * (u * z).sum(-1, keepdim=True)) / norm * weights.unsqueeze(-1)
        return v
