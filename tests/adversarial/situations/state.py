"""Networks with state, chance and branches of their own."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adversarial.situations.situation import Situation, features

WIDTH, HIDDEN, OUT = 24, 48, 20


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.second = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(torch.tanh(self.first(x))))


class Counter(Body):
    """Counts its calls, in a buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(x)


class RunningMean(Body):
    """Its output depends on all examples that it has seen before, in evaluation too."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        self.mean.mul_(0.5).add_(0.5 * x.mean(0))
        return super().forward(x - self.mean)


class Cached(Body):
    """Keeps the last input in an attribute and adds it to the next one of the same shape."""

    last: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        if self.last is not None and self.last.shape == y.shape:
            y = y + self.last
        self.last = y.detach()
        return y


class Remembered(Body):
    """Keeps what it computed, and does not read it."""

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = torch.tanh(self.first(x))
        return torch.as_tensor(self.second(self.hidden))


class Positions(Body):
    """Makes a table at its first call and keeps it, as rotary embeddings do."""

    table: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.table is None:
            self.table = torch.linspace(-1, 1, WIDTH)
        return super().forward(x + self.table)


class Noisy(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.randn_like(x))


class AlwaysDropping(Body):
    """Monte Carlo dropout: it drops in evaluation too."""

    def forward(self, x: Tensor) -> Tensor:
        h = nn.functional.dropout(torch.tanh(self.first(x)), 0.5, training=True)
        return torch.as_tensor(self.second(h))


class SlightlyNoisy(Body):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1e-3 * torch.rand(x.shape[0], 1)


class Sampled(Body):
    """A variational autoencoder that samples in evaluation."""

    def forward(self, x: Tensor) -> Tensor:
        mean, spread = self.first(x).chunk(2, -1)
        z = mean + spread.exp() * torch.randn(mean.shape)
        return torch.as_tensor(self.second(torch.cat([z, z], -1)))


class Dropout(Body):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(self.drop(torch.tanh(self.first(x)))))


class OnlyInTraining(Body):
    """Another result, of another layer, in training."""

    def __init__(self) -> None:
        super().__init__()
        self.auxiliary = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Any:
        h = torch.tanh(self.first(x))
        if self.training:
            return self.second(h), self.auxiliary(h)
        return self.second(h)


class Branching(nn.Module):
    """Which of two layers is used depends on the values of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.positive, self.negative = nn.Linear(WIDTH, OUT), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.positive(x) if x.sum() > 0 else self.negative(x))


class BranchOfNumbers(Branching):
    """The same, with a number that the tracer cannot see to come from the values."""

    def forward(self, x: Tensor) -> Tensor:
        chosen = self.positive if float(x.detach().numpy().sum()) > 0 else self.negative
        return torch.as_tensor(chosen(x))


class EarlyExit(nn.Module):
    """Goes on until its values are small, at most eight times."""

    def __init__(self) -> None:
        super().__init__()
        self.step, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        for _ in range(8):
            x = torch.tanh(self.step(x))
            if x.abs().amax().item() < 0.3:
                break
        return torch.as_tensor(self.head(x))


class SortedBranch(Branching):
    """Both branches on their own examples, by masks."""

    def forward(self, x: Tensor) -> Tensor:
        mask = x.sum(-1, keepdim=True) > 0
        return torch.where(mask, self.positive(x), self.negative(x))


x = features(WIDTH)
one = partial(Situation, batches=x, layers=2)
CHANCE = "changes from call to call"

SITUATIONS = {
    "counts_its_calls": one(Counter, layers=0, refused="buffer calls"),
    "running_mean": one(RunningMean, layers=0, refused=CHANCE),
    "adds_its_last_output": one(Cached, layers=0, refused=CHANCE),
    "remembers_unread": one(Remembered),
    "makes_a_table": one(Positions),
    "noise": one(Noisy, layers=0, refused=CHANCE, default=True),
    "slight_noise": one(SlightlyNoisy, layers=0, refused=CHANCE),
    "drops_always": one(AlwaysDropping, layers=0, refused=CHANCE),
    "samples": one(Sampled, layers=0, refused=CHANCE),
    "dropout": one(Dropout),
    "other_in_training": one(OnlyInTraining, left={"auxiliary": "never"}),
    "branches_by_values": one(Branching, layers=0, refused="data-dependent"),
    "branches_by_numbers": one(BranchOfNumbers, layers=0, refused="cannot be traced"),
    "early_exit": one(EarlyExit, layers=0, refused="data-dependent"),
    "branches_by_masks": one(SortedBranch),
}
