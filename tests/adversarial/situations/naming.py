"""Networks whose parts have names that trip up paths, patterns, markup or files."""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import Tensor, nn

from adversarial.situations.situation import Situation, features

WIDTH, OUT = 24, 20


class Listed(nn.Module):
    """A chain of layers under the given names."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names
        for name in names:
            self.add_module(name, nn.Linear(WIDTH, WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = x + torch.tanh(self._modules[name](x))  # type: ignore[misc]
        return x


class Weighted(nn.Module):
    """A child that is called weight, beside one that is called bias."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Linear(WIDTH, WIDTH)
        self.bias = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.bias(torch.tanh(self.weight(x))))


def deep(levels: int) -> nn.Module:
    inner: nn.Module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh(), nn.Linear(WIDTH, OUT))
    for _ in range(levels):
        inner = nn.Sequential(inner)
    return inner


class Step(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(x + 0.1 * torch.tanh(self.linear(x)))


def many(count: int) -> nn.Module:
    steps = [Step() for _ in range(count)]
    return nn.Sequential(*steps, nn.Linear(8, 8))


class OwnSequential(nn.Sequential):
    """Says what it adds to the chain."""

    def forward(self, input: Tensor) -> Tensor:
        return torch.as_tensor(super().forward(input)) + 0.5 * input[:, :OUT]


class Dictionary(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleDict(
            {"in": nn.Linear(WIDTH, WIDTH), "class": nn.Linear(WIDTH, WIDTH)}
        )
        self.lists = nn.ModuleList([nn.ModuleList([nn.Linear(WIDTH, OUT)])])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.parts.values():
            x = torch.tanh(part(x))
        return torch.as_tensor(self.lists[0][0](x))  # type: ignore[index]


x, given = features(WIDTH), features(WIDTH, name="input")

SITUATIONS = {
    "names_with_spaces": Situation(lambda: Listed("the first", " second", "third "), x, 3),
    "names_in_unicode": Situation(lambda: Listed("größe", "层", "слой", "🧠"), x, 4, default=True),
    "names_in_brackets": Situation(lambda: Listed("a[0]", "[red]", "(b)", "{c}", "*", "?"), x, 6),
    "names_of_paths": Situation(
        lambda: Listed("a/b", "c\\d", "\\e", "~", "-o", "%s", "$HOME"), x, 7
    ),
    "names_with_lines": Situation(
        lambda: Listed("a\nb", "tab\there", "quote", "\x1b[31m"),
        x,
        4,
    ),
    "names_of_torch": Situation(
        lambda: Listed("module", "_orig_mod", "weight", "0", "parametrizations", "self"), x, 6
    ),
    "names_that_are_keywords": Situation(lambda: Listed("in", "class", "None", "def"), x, 4),
    "names_in_quotes": Situation(lambda: Listed('a"b', "c'd", "e\\", "f#g"), x, 4),
    "names_of_factors": Situation(lambda: Listed("U", "V", "first", "second", "factors"), x, 5),
    "children_weight_and_bias": Situation(Weighted, x, 2),
    "module_dict": Situation(Dictionary, x, 3),
    "deeply_nested": Situation(lambda: deep(60), given, 2),
    "many_layers": Situation(lambda: many(100), features(8, name="input"), 101),
    "single_layer": Situation(lambda: nn.Sequential(nn.Linear(WIDTH, OUT)), given, 1),
    "nothing_but_a_layer": Situation(lambda: nn.Linear(WIDTH, OUT), given, refused="single layer"),
    "own_sequential": Situation(
        lambda: OwnSequential(
            OrderedDict(a=nn.Linear(WIDTH, 48), b=nn.ReLU(), c=nn.Linear(48, OUT))
        ),
        given,
        2,
    ),
}
