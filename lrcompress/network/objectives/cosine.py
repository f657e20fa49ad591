"""The cosine distance, for embeddings."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.network.objectives.objective import Objective


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
