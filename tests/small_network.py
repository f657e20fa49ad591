"""A model and its data, named `small_network:build` and `small_network:batches`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrcompress.network.batches import Batch

WIDTH, HIDDEN, BLOCKS = 24, 40, 3


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, HIDDEN)
        self.down = nn.Linear(HIDDEN, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.as_tensor(self.down(torch.relu(self.up(self.norm(x)))))


class SmallNetwork(nn.Module):
    """x: (examples, WIDTH) → class scores (examples, 7)."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(BLOCKS))
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return torch.as_tensor(self.head(x))


def build() -> SmallNetwork:
    return SmallNetwork()


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(5)
    mixing = torch.randn(WIDTH, WIDTH, generator=generator) * torch.linspace(2, 0.1, WIDTH)
    return [{"x": torch.randn(16, WIDTH, generator=generator) @ mixing} for _ in range(4)]
