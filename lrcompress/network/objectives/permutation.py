"""Probes that ask as much of classes that were not seen as of those that were."""

from __future__ import annotations

import torch
from torch import Tensor


def permuted(v: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Probes (examples, classes), of which a share has its classes permuted at random."""
    hit = torch.rand((len(v), 1), generator=generator) < share
    order = torch.rand(v.shape, generator=generator).argsort(-1)
    return torch.where(hit.to(v.device), v.gather(-1, order.to(v.device)), v)
