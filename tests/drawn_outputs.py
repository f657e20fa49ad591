"""Random outputs of the kind that each objective is for."""

from __future__ import annotations

import torch
from torch import Tensor


def drawn_outputs(name: str, *shape: int, seed: int) -> Tensor:
    """Random outputs of the kind that the objective is for."""
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    if name == "probabilities":
        return x.softmax(-1)
    return torch.sigmoid(x) if name == "bernoulli-probabilities" else x
