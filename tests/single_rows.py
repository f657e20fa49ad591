"""A network whose weights have single rows or columns: `single_rows:build` and `:batches`."""

from __future__ import annotations

import torch
from torch import nn

from lrcompress.network.batches import Batch

WIDTH, CHANNELS, WORDS = 48, 24, 60


class SingleRows(nn.Module):
    """x: (examples, WIDTH), ids: (examples, 5) → one number an example."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Embedding(WORDS, 1)  # a column
        self.scale = nn.Linear(1, WIDTH)  # a column
        self.depthwise = nn.Conv1d(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)  # rows
        self.wide = nn.Linear(WIDTH, CHANNELS * 4)
        self.score = nn.Linear(CHANNELS * 4, 1)  # a row

    def forward(self, x: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        x = x + self.scale(self.levels(ids).sum(1))  # (examples, WIDTH)
        x = torch.relu(self.wide(x)).unflatten(1, (CHANNELS, 4))
        return torch.as_tensor(self.score(self.depthwise(x).flatten(1)))


def build() -> SingleRows:
    torch.manual_seed(3)
    return SingleRows()


def batches() -> list[Batch]:
    generator = torch.Generator().manual_seed(8)
    return [
        {
            "x": torch.randn(64, WIDTH, generator=generator),
            "ids": torch.randint(0, WORDS, (64, 5), generator=generator),
        }
        for _ in range(4)
    ]
