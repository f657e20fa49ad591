"""A convolutional network with batch normalisation, fitted to 10,000 images of Fashion-MNIST.

It is certain of its training images, of which 160 calibrate it; the test images score it.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.network import Network, network
from benchmarks.unseen_networks.score import Score, classified, portions
from benchmarks.unseen_networks.training import trained_weights
from lrcompress.network.batches import Batch
from sample_models.fashion_mnist import test_set, training_set

IMAGES, CALIBRATION, TESTED = 10_000, 160, 4000
STEPS, BATCH = 1250, 64


def _convolution(channels: int, out: int) -> list[nn.Module]:
    kernel = nn.Conv2d(channels, out, 3, padding=1, bias=False)
    return [kernel, nn.BatchNorm2d(out), nn.ReLU()]


class ConvNet(nn.Module):
    """pixel_values: (B, 1, 28, 28)  →  logits (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, 32),
            nn.MaxPool2d(2),
            *_convolution(32, 64),
            nn.MaxPool2d(2),
            *_convolution(64, 128),
            *_convolution(128, 128),
            nn.MaxPool2d(2),  # (B, 128, 3, 3)
        )
        self.classifier = nn.Sequential(nn.Linear(1152, 256), nn.ReLU(), nn.Linear(256, 10))

    def forward(self, pixel_values: Tensor) -> Tensor:
        return torch.as_tensor(self.classifier(self.features(pixel_values).flatten(1)))


def make() -> nn.Module:
    return ConvNet()


def batches() -> list[Batch]:
    """160 training images, 32 a batch."""
    images, labels = _training()
    chosen = {"pixel_values": images[:CALIBRATION]}
    return [batch for batch, _ in portions(chosen, labels[:CALIBRATION], 32)]


def load() -> Network:
    return network(
        "convnet",
        model=f"{__name__}:make",
        data=f"{__name__}:batches",
        weights=trained_weights("convnet", make, _draw, steps=STEPS, rate=2e-3),
        score=_score,
        metric_name="accuracy",
        scope="total",
        calibration="160 training images",
        evaluation="4,000 test images",
    )


@cache
def _training() -> tuple[Tensor, Tensor]:
    images, labels = training_set()
    return images[:IMAGES].clone(), labels[:IMAGES].clone()


def _draw(generator: torch.Generator) -> tuple[Batch, Tensor]:
    images, labels = _training()
    rows = torch.randint(IMAGES, (BATCH,), generator=generator)
    return {"pixel_values": images[rows]}, labels[rows]


def examples() -> list[tuple[Batch, Tensor]]:
    """Test images, 250 a batch, and their classes."""
    images, labels = test_set()
    tested = {"pixel_values": images[:TESTED]}
    return portions(tested, labels[:TESTED], 250)


def _score(module: nn.Module) -> Score:
    return classified(module, examples())
