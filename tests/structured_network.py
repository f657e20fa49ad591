"""A model wide enough for every linear structure: `structured_network:build` and `:batches`."""

from __future__ import annotations

import torch
from torch import nn

from lrcompress.network.batches import Batch

WIDTH, HIDDEN = 64, 96


class StructuredNetwork(nn.Module):
    """x: (examples, WIDTH) → class scores (examples, 9)."""

    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)
        self.head = nn.Linear(WIDTH, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.head(x + self.down(torch.relu(self.up(x)))))


def build() -> StructuredNetwork:
    torch.manual_seed(0)
    return StructuredNetwork()


def build_bare() -> StructuredNetwork:
    """x: (examples, WIDTH) → class scores (examples, 9), without a bias or a norm."""

    class Bare(StructuredNetwork):
        def __init__(self) -> None:
            super().__init__()
            for layer in (self.up, self.down, self.head):
                layer.register_parameter("bias", None)

    torch.manual_seed(0)
    return Bare()


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) * torch.linspace(2, 0.1, WIDTH)
    return [{"x": torch.randn(64, WIDTH, generator=generator) @ mixing} for _ in range(4)]
