"""Networks that take their inputs in unusual ways."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adversarial.situations.situation import Situation, features, together, tokens

WIDTH, HIDDEN, OUT = 24, 48, 20


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, HIDDEN)
        self.second = nn.Linear(HIDDEN, OUT)

    def run(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.second(torch.tanh(self.first(x))))


class KeywordOnly(Body):
    def forward(self, *, x: Tensor, scale: Tensor) -> Tensor:
        return self.run(x * scale)


class AnyKeywords(Body):
    def forward(self, **inputs: Tensor) -> Tensor:
        return self.run(inputs["x"] + inputs.get("scale", 0))


class NamedAndAny(Body):
    def forward(self, x: Tensor, **rest: Any) -> Tensor:
        return self.run(x) * rest.get("gain", 1)


class AnyPositions(Body):
    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(inputs[0])


class PositionalOnly(Body):
    def forward(self, x: Tensor, /) -> Tensor:
        return self.run(x)


class Optional(Body):
    def forward(
        self, x: Tensor, mask: Tensor | None = None, scale: Tensor | None = None, power: int = 2
    ) -> Tensor:
        if mask is not None:
            x = x.masked_fill(mask == 0, 0.0)
        return self.run(x if scale is None else x * scale**power)


class Unused(Body):
    def forward(self, x: Tensor, labels: Tensor) -> Tensor:
        return self.run(x)


class OrderOther(Body):
    def forward(self, scale: Tensor, x: Tensor) -> Tensor:
        return self.run(x) * scale.mean(-1, keepdim=True)


class ChangesInput(Body):
    """Its input is changed in place: what the caller holds is another tensor afterwards."""

    def forward(self, x: Tensor) -> Tensor:
        x.mul_(0.5).add_(0.1)
        return self.run(x)


class Named(Body):
    """Arguments named as things of Python, ONNX and the network."""

    def forward(self, self_: Tensor, input: Tensor, output: Tensor) -> Tensor:
        return self.run(self_ + input * output)


class Images(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1)
        self.head = nn.Linear(24, OUT)

    def forward(self, pixels: Tensor) -> Tensor:
        pixels = pixels.float() / 255
        return torch.as_tensor(self.head(torch.relu(self.conv(pixels)).mean((-1, -2))))


class Flags(Body):
    def forward(self, x: Tensor, flags: Tensor) -> Tensor:
        return self.run(torch.where(flags, x, -x))


class Lengths(Body):
    """One length an example, from which the network makes its own mask."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        mask = torch.arange(x.shape[1])[None] < lengths[:, None]
        y = self.run(x) * mask[..., None]
        return y.sum(1) / lengths[:, None]


def _flags(seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"flags": torch.rand(32, WIDTH, generator=generator) < 0.5} for _ in range(8)]


def _lengths(seed: int) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    return [{"lengths": torch.randint(1, 8, (32,), generator=generator)} for _ in range(8)]


def one_each(seed: int) -> list[dict[str, Tensor]]:
    return [{"x": row[None]} for batch in x(seed) for row in batch["x"]]


x, scale = features(WIDTH), features(WIDTH, name="scale")
two = partial(Situation, batches=together(x, scale), layers=2)
one = partial(Situation, batches=x, layers=2)

SITUATIONS = {
    "keywords_only": two(KeywordOnly, default=True),
    "any_keywords": two(AnyKeywords),
    "named_and_any_keywords": one(NamedAndAny),
    "any_positions": one(AnyPositions, layers=0, refused="x"),
    "positional_only": one(PositionalOnly, layers=0, refused="x"),
    "optional_left_out": one(Optional),
    "optional_given_in_part": two(Optional),
    "unused_input": Situation(Unused, together(x, tokens(9, 5, "labels")), layers=2),
    "inputs_in_another_order": two(OrderOther),
    "input_changed_in_place": one(ChangesInput, default=True),
    "names_of_other_things": Situation(
        Named,
        together(
            features(WIDTH, name="self_"),
            features(WIDTH, name="input"),
            features(WIDTH, name="output"),
        ),
        layers=2,
        says=("inputs are called output too",),
    ),
    "bytes_of_images": Situation(
        Images,
        lambda seed: [
            {"pixels": b["pixels"].reshape(32, 3, 6, 6)} for b in tokens(256, 108, "pixels")(seed)
        ],
        layers=2,
    ),
    "boolean_input": Situation(
        Flags, together(x, _flags), layers=2, says=("the length of flags is fixed",)
    ),
    "length_an_example": Situation(Lengths, together(features(7, WIDTH), _lengths), layers=2),
    "one_example_batches": Situation(Optional, one_each, layers=2),
}
