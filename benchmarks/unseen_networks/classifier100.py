"""A classifier of a hundred shapes, calibrated on a few examples of twenty of them.

Each class is a smooth random picture, and its examples are turned, scaled, shifted and noisy. The
calibration tells nothing of eighty classes; all hundred are scored.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.network import Network, network
from benchmarks.unseen_networks.score import Score, classified, portions
from benchmarks.unseen_networks.training import trained_weights
from lrcompress.network.batches import Batch

CLASSES, SIDE = 100, 24
KNOWN_CLASSES, KNOWN_EXAMPLES = 20, 50
STEPS, BATCH = 900, 128


class Separable(nn.Sequential):
    """A convolution of each channel, then one across channels."""

    def __init__(self, channels: int, out: int, stride: int) -> None:
        super().__init__(
            nn.Conv2d(channels, channels, 3, stride, 1, groups=channels, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, out, 1, bias=False),
            nn.BatchNorm2d(out),
            nn.ReLU(),
        )


class Classifier(nn.Module):
    """pixel_values: (B, 1, 24, 24)  →  logits (B, 100)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(1, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU()
        )
        self.body = nn.Sequential(
            Separable(32, 64, 1),
            Separable(64, 128, 2),
            Separable(128, 256, 1),
            Separable(256, 512, 2),
            Separable(512, 512, 1),
        )
        self.head = nn.Linear(512, CLASSES)

    def forward(self, pixel_values: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.body(self.stem(pixel_values)).mean((2, 3))))


def make() -> nn.Module:
    return Classifier()


def batches() -> list[Batch]:
    """50 examples of 20 classes, 25 a batch."""
    generator = torch.Generator().manual_seed(1)
    known = torch.randperm(CLASSES, generator=generator)[:KNOWN_CLASSES]
    labels = known[torch.arange(KNOWN_EXAMPLES) % KNOWN_CLASSES]
    pictures = examples(labels, generator)
    return [batch for batch, _ in portions({"pixel_values": pictures}, labels, 25)]


def load() -> Network:
    return network(
        "classifier100",
        model=f"{__name__}:make",
        data=f"{__name__}:batches",
        weights=trained_weights("classifier100", make, _draw, steps=STEPS, rate=3e-3),
        score=_score,
        metric_name="accuracy",
        scope="total",
        calibration="50 examples of 20 classes",
        evaluation="2,000 other examples of all 100 classes",
    )


def examples(labels: Tensor, generator: torch.Generator) -> Tensor:
    """One deformed picture for each label.  (N, 1, 24, 24)"""
    coarse = torch.randn(CLASSES, 1, 6, 6, generator=torch.Generator().manual_seed(0))
    smooth = nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    pictures = smooth[labels]

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), generator=generator)

    turn, scale = uniform(-math.pi / 10, math.pi / 10), uniform(0.85, 1.15)
    cosine, sine = turn.cos() * scale, turn.sin() * scale
    across, down = uniform(-0.15, 0.15), uniform(-0.15, 0.15)
    moved = torch.stack((cosine, -sine, across, sine, cosine, down), 1).view(-1, 2, 3)
    grid = nn.functional.affine_grid(moved, list(pictures.shape), align_corners=False)
    warped = nn.functional.grid_sample(pictures, grid, align_corners=False)
    noise = torch.randn(warped.shape, generator=generator)
    return warped * uniform(0.8, 1.2).view(-1, 1, 1, 1) + 0.2 * noise


def _draw(generator: torch.Generator) -> tuple[Batch, Tensor]:
    labels = torch.randint(CLASSES, (BATCH,), generator=generator)
    return {"pixel_values": examples(labels, generator)}, labels


def evaluation() -> list[tuple[Batch, Tensor]]:
    """2,000 examples of all classes, 250 a batch, and their classes."""
    labels = torch.arange(2000) % CLASSES
    pictures = examples(labels, torch.Generator().manual_seed(2))
    return portions({"pixel_values": pictures}, labels, 250)


def _score(module: nn.Module) -> Score:
    return classified(module, evaluation())
