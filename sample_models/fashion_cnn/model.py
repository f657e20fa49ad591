"""A convolutional network with every kind of kernel: plain, strided, depthwise, 1x1, grouped."""

from __future__ import annotations

import torch
from torch import nn

CLASSES = 10


def convolution(
    channels_in: int, channels_out: int, kernel: int, stride: int = 1, groups: int = 1
) -> nn.Sequential:
    """Convolution (same padding) → batch norm → ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            channels_in,
            channels_out,
            kernel,
            stride=stride,
            padding=kernel // 2,
            groups=groups,
            bias=False,
        ),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    )


class FashionCnn(nn.Module):
    """pixel_values: (B, 1, 28, 28), normalised  →  logits: (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            convolution(1, 32, 3),
            convolution(32, 64, 3, stride=2),  # (B, 64, 14, 14)
            convolution(64, 64, 3, groups=64),
            convolution(64, 128, 1),
            convolution(128, 128, 3, stride=2),  # (B, 128, 7, 7)
            convolution(128, 128, 3, groups=4),
            convolution(128, 96, 3),
        )
        self.hidden = nn.Linear(96, 128)
        self.head = nn.Linear(128, CLASSES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        pooled = self.features(pixel_values).mean(dim=(-2, -1))  # (B, 96)
        return torch.as_tensor(self.head(torch.relu(self.hidden(pooled))))


def build() -> FashionCnn:
    """The architecture of model.safetensors, with fresh weights."""
    return FashionCnn()
