"""Small networks, each with one habit that real ones have."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.network.batches import Batch

VOCABULARY = 11


def feature_batches(batches: int, examples: int, *shape: int, seed: int = 0) -> list[Batch]:
    """Batches of random features under the name `x`."""
    generator = torch.Generator().manual_seed(seed)
    return [{"x": torch.randn(examples, *shape, generator=generator)} for _ in range(batches)]


def token_batches(batches: int, examples: int, length: int, seed: int = 0) -> list[Batch]:
    """Batches of random tokens, padded on the right to different lengths from two."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for _ in range(batches):
        ids = torch.randint(1, VOCABULARY, (examples, length), generator=generator)
        lengths = torch.randint(2, length + 1, (examples, 1), generator=generator)
        mask = (torch.arange(length) < lengths).long()
        made.append({"input_ids": ids * mask, "attention_mask": mask})
    return made


class Mlp(nn.Module):
    """Two layers with biases, features in and out."""

    def __init__(self, n: int = 6, hidden: int = 8, m: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(n, hidden)
        self.second = nn.Linear(hidden, m)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(x)))
        return out


def mlp_batches() -> list[Batch]:
    return feature_batches(2, 8, 6)


class Attention(nn.Module):
    """One mask-aware block with q, k, v of one input and a gated feed-forward of another.

    With `tied` the head shares the embedding's weight and keeps a bias of its own.
    """

    def __init__(self, width: int = 8, *, tied: bool = True) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, width)
        self.norm = nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key = nn.Linear(width, width)
        self.value = nn.Linear(width, width)
        self.out = nn.Linear(width, width)
        self.norm_of_feed_forward = nn.LayerNorm(width)
        self.gate = nn.Linear(width, width + 3, bias=False)
        self.up = nn.Linear(width, width + 3, bias=False)
        self.down = nn.Linear(width + 3, width, bias=False)
        self.head = nn.Linear(width, VOCABULARY)
        if tied:
            self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        x = self.embedding(input_ids)
        h = self.norm(x)
        hidden = attention_mask.unsqueeze(1) == 0
        scores = self.query(h) @ self.key(h).mT / h.shape[-1] ** 0.5
        scores = scores.masked_fill(hidden, float("-inf"))
        x = x + self.out(scores.softmax(-1) @ self.value(h))
        h = self.norm_of_feed_forward(x)
        x = x + self.down(functional.silu(self.gate(h)) * self.up(h))
        return {"logits": self.head(x)}


class InPlaceConvNet(nn.Module):
    """Convolutions whose outputs are changed in place, as image networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(2, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding="same", groups=2)
        self.head = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.first(x), inplace=True)
        x = functional.relu(self.second(x), inplace=True)
        out: Tensor = self.head(x.mean((-1, -2)))
        return out


class InPlaceResidual(nn.Module):
    """The layer's own input is changed in place after the layer has read it."""

    in_place = True

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.second = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.in_place:
            x += self.second(x)
        else:
            x = x + self.second(x)
        return torch.tanh(x)


class Twice(nn.Module):
    """One layer that is applied twice, as ALBERT shares its blocks across depth."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.shared = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.shared(torch.tanh(self.shared(x)))
        return out


class SharesBias(nn.Module):
    """Two layers with one bias, as some output heads have."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 10), nn.Linear(10, 10)
        self.second.bias = self.first.bias
        self.head = nn.Linear(10, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.second(torch.relu(self.first(x)))))
        return out


class ChangesPath(nn.Module):
    """`other` reads what `first` reads on the first batch, and another tensor afterwards."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.first = nn.Linear(width, width)
        self.other = nn.Linear(width, width)
        self.batches = 0

    def forward(self, x: Tensor, is_first: Tensor) -> Tensor:
        y = self.first(x)
        out: Tensor = y + self.other(x if bool(is_first[0]) else torch.tanh(y))
        return out


class Unreached(nn.Module):
    """Layers that are never called, and one whose output is not measured."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.used = nn.Linear(width, width)
        self.never_called = nn.Linear(width, width)
        self.not_measured = nn.Linear(width, width)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.used(x), "other": self.not_measured(x)}


class Function(nn.Module):
    """A module around a layer and what is done with it."""

    def __init__(self, layer: nn.Module, forward: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.layer = layer
        self._forward = forward

    def forward(self, x: Tensor) -> Tensor:
        return self._forward(self.layer, x)
