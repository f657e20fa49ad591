"""A network whose weights lie beyond float16: `far_weights:build` and `:batches`."""

from __future__ import annotations

import torch
from torch import nn

from lrcompress.network.batches import Batch

WIDTH, HIDDEN = 32, 48
LARGE, SMALL = 1e7, 1e-8  # factors on the weights of two layers


class FarWeights(nn.Module):
    """x: (examples, WIDTH) → numbers (examples, 8)."""

    def __init__(self) -> None:
        super().__init__()
        self.large = nn.Linear(WIDTH, HIDDEN, bias=False)
        self.small = nn.Linear(HIDDEN, HIDDEN, bias=False)
        self.usual = nn.Linear(HIDDEN, 8)
        with torch.no_grad():
            self.large.weight.mul_(LARGE)
            self.small.weight.mul_(SMALL)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.tanh(self.large(x) / LARGE)
        return torch.as_tensor(self.usual(x + self.small(x) / SMALL))


def build() -> FarWeights:
    torch.manual_seed(1)
    return FarWeights()


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(2)
    return [{"x": torch.randn(64, WIDTH, generator=generator)} for _ in range(4)]
