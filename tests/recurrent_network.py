"""A network most of whose weights no layer of a plan holds."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Recurrent(nn.Module):
    """A linear layer, an LSTM, a learned table that is added, and a transposed convolution."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Linear(32, 64)
        self.positions = nn.Parameter(torch.randn(1, 80, 64))
        self.recurrent = nn.LSTM(64, 64, batch_first=True, bidirectional=True)
        self.wider = nn.ConvTranspose1d(128, 32, 4, stride=2)
        self.head = nn.Linear(32, 10)
        self.head.weight.data *= 100.0  # so that first choices differ

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        hidden = self.embed(x) + self.positions[:, : x.shape[1]]
        hidden, _ = self.recurrent(hidden)
        return {"logits": self.head(self.wider(hidden.mT).mT).mean(1)}


def build() -> nn.Module:
    return Recurrent().eval()


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    return [{"x": torch.randn(8, 20, 32, generator=generator)} for _ in range(6)]
