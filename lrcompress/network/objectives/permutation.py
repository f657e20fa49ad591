"""Probes that weight unseen classes as much as seen ones."""

from __future__ import annotations

import torch
from torch import Tensor


def permuted(v: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Permute the classes of a random share of the probes v: (examples, classes)."""
    hit = torch.rand((len(v), 1), generator=generator) < share
    order = torch.rand(v.shape, generator=generator).argsort(-1)
    return torch.where(hit.to(v.device), v.gather(-1, order.to(v.device)), v)
