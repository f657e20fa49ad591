"""A reader of digit strings: convolutions, a bidirectional LSTM over columns, CTC.

The strings are composed of scikit-learn's 8x8 digits; those of the held-out strings are held out.
"""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.network import Network, network
from benchmarks.unseen_networks.score import Score, logits_of
from benchmarks.unseen_networks.training import trained_weights
from lrcompress.network.batches import Batch

DIGITS, WIDTH = 5, 48  # of a string, of its image
COLUMNS, BLANK = 24, 10
HELD_OUT = 400  # digits
STEPS, BATCH = 900, 64


class Reader(nn.Module):
    """pixel_values: (B, 1, 8, 48)  →  logits (B, 24, 11): ten digits and the blank."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.Conv2d(1, 48, 3, padding=1, bias=False),
            nn.BatchNorm2d(48),
            nn.ReLU(),
            nn.MaxPool2d(2),  # (B, 48, 4, 24)
            nn.Conv2d(48, 96, 3, padding=1, bias=False),
            nn.BatchNorm2d(96),
            nn.ReLU(),
        )
        self.project = nn.Linear(4 * 96, 128)
        self.recurrent = nn.LSTM(128, 128, batch_first=True, bidirectional=True)
        self.head = nn.Linear(256, BLANK + 1)

    def forward(self, pixel_values: Tensor) -> Tensor:
        columns = self.features(pixel_values).flatten(1, 2).transpose(1, 2)  # (B, 24, 384)
        read, _ = self.recurrent(torch.relu(self.project(columns)))
        return torch.as_tensor(self.head(read))


def make() -> nn.Module:
    return Reader()


def batches() -> list[Batch]:
    """128 strings of training digits, 32 a batch."""
    generator = torch.Generator().manual_seed(1)
    return [{"pixel_values": strings(32, generator, held_out=False)[0]} for _ in range(4)]


def load() -> Network:
    return network(
        "crnn",
        model=f"{__name__}:make",
        data=f"{__name__}:batches",
        weights=trained_weights("crnn", make, _draw, steps=STEPS, rate=3e-3, loss=_loss),
        score=_score,
        metric_name="strings right",
        scope="compressible",
        calibration="128 strings of training digits",
        evaluation="1,000 strings of other digits",
    )


def strings(count: int, generator: torch.Generator, *, held_out: bool) -> tuple[Tensor, Tensor]:
    """Images (count, 1, 8, 48), their digits side by side from a random column on, and the digits
    (count, DIGITS)."""
    images, labels = _digits()
    first, last = (0, HELD_OUT) if held_out else (HELD_OUT, len(labels))
    chosen = torch.randint(first, last, (count, DIGITS), generator=generator)
    joined = images[chosen].permute(0, 2, 1, 3).reshape(count, 8, 8 * DIGITS)
    starts = torch.randint(WIDTH - 8 * DIGITS + 1, (count,), generator=generator)
    columns = torch.arange(WIDTH) - starts.unsqueeze(1)  # (count, WIDTH), of the joined digits
    inside = (columns >= 0) & (columns < 8 * DIGITS)
    index = columns.clamp(0, 8 * DIGITS - 1).unsqueeze(1).expand(-1, 8, -1)
    placed = joined.gather(2, index) * inside.unsqueeze(1)
    noise = 0.05 * torch.randn(placed.shape, generator=generator)
    return (placed + noise).unsqueeze(1), labels[chosen]


@cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    found = load_digits()
    order = torch.randperm(len(found.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(found.images).float()[order] / 16
    return images, torch.from_numpy(found.target).long()[order]


def _draw(generator: torch.Generator) -> tuple[Batch, Tensor]:
    images, labels = strings(BATCH, generator, held_out=False)
    return {"pixel_values": images}, labels


def _loss(logits: Tensor, right: Tensor) -> Tensor:
    """Per string."""
    logs = logits.log_softmax(-1).transpose(0, 1)  # (24, B, 11)
    frames = torch.full((len(right),), COLUMNS)
    lengths = torch.full((len(right),), DIGITS)
    losses = nn.functional.ctc_loss(logs, right, frames, lengths, blank=BLANK, reduction="none")
    return losses.mean()


def _score(module: nn.Module) -> Score:
    """Strings read right, the loss a string, the entropy a column."""
    images, right = strings(1000, torch.Generator().manual_seed(2), held_out=True)
    logits = logits_of(module, {"pixel_values": images}).double()
    hits = 0
    for best, digits in zip(logits.argmax(-1), right, strict=True):
        read = best.unique_consecutive()
        hits += read[read != BLANK].tolist() == digits.tolist()
    logs = logits.log_softmax(-1)
    entropy = float(-(logs.exp() * logs).sum(-1).mean())
    return Score(hits / len(right), float(_loss(logits, right)), entropy)
