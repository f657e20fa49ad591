"""Networks whose layers or weights are used in more than one place or in more than one way."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adversarial.situations.situation import Situation, features, tokens

WIDTH, HIDDEN, OUT = 24, 48, 20
READ = "reads its weight directly"
SHARED = "its weight is shared by layers of other kinds"


class OtherShapes(nn.Module):
    """One layer reads a vector, a sequence and a map."""

    def __init__(self) -> None:
        super().__init__()
        self.shared = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        one = self.shared(x.mean(1))
        many = self.shared(x).mean(1)
        as_map = self.shared(x.unflatten(1, (2, 3))).amax((1, 2))
        return torch.as_tensor(self.head(torch.tanh(one + many + as_map)))


class Recursion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.step = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, OUT)

    def descend(self, x: Tensor, depth: int) -> Tensor:
        return x if depth == 0 else x + self.descend(torch.tanh(self.step(x)), depth - 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(self.descend(x, 4)))


class LinearAndConvolution(nn.Module):
    """A pointwise convolution whose weight is a view of a Linear's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH)
        self.conv = nn.Conv1d(WIDTH, WIDTH, 1)
        self.conv.weight = nn.Parameter(self.first.weight.detach()[..., None].clone())
        self.first.weight = nn.Parameter(self.first.weight.detach())
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        y = functional.linear(x.mean(1), self.conv.weight[..., 0]) + self.first(x.mean(1))
        y = y + self.conv(x.mT).amax(-1)
        return torch.as_tensor(self.head(torch.tanh(y)))


class SameParameterTwice(nn.Module):
    """Two Linears hold one Parameter; a third name of it is the network's own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.second.weight = self.first.weight
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(torch.tanh(self.second(torch.tanh(self.first(x))))))


class TwoNames(nn.Module):
    """One module under two names, in two containers."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        self.again = self.block
        self.both = nn.ModuleList([self.block[0], nn.Linear(WIDTH, OUT)])

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.both[1](self.again(self.block(x)) + self.both[0](x)))


class RepeatedBlock(nn.Sequential):
    """A list that holds the same block thrice, as ALBERT-like stacks do."""

    def __init__(self) -> None:
        block = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())
        super().__init__(block, block, block, nn.Linear(WIDTH, OUT))


class Tied(nn.Module):
    def __init__(self, *, bias: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(40, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 40, bias=bias)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        return {"logits": self.head(torch.tanh(self.inner(self.embedding(input_ids))))}


class TiedThrice(nn.Module):
    """Encoder's and decoder's embeddings and the head in one weight, as T5 has it."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(40, WIDTH), nn.Embedding(40, WIDTH)
        self.inner = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, 40, bias=False)
        self.target.weight = self.head.weight = self.source.weight

    def forward(self, input_ids: Tensor) -> dict[str, Tensor]:
        mixed = self.source(input_ids).mean(1, keepdim=True) + self.target(input_ids)
        return {"logits": self.head(torch.tanh(self.inner(mixed)))}


class TiedTransposed(nn.Module):
    """An autoencoder that decodes with its encoder's weight, transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.encode = nn.Linear(WIDTH, HIDDEN)
        self.inner = nn.Linear(HIDDEN, HIDDEN)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.inner(torch.tanh(self.encode(x))))
        return functional.linear(h, self.encode.weight.mT)


class FreeParameters(nn.Module):
    """Weights that are Parameters of the network and its lists, used by products."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.empty(WIDTH, HIDDEN))
        self.rest = nn.ParameterList([torch.empty(HIDDEN, HIDDEN) for _ in range(2)])
        self.named = nn.ParameterDict({"out": torch.empty(HIDDEN, HIDDEN)})
        self.head = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(x @ self.first)
        for weight in self.rest:
            h = torch.tanh(torch.einsum("bi,ij->bj", h, weight))
        return torch.as_tensor(self.head(torch.tanh(torch.matmul(h, self.named["out"]))))


class Slices(nn.Module):
    """Only a part of the weight is read, beside the layer's own call."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(WIDTH, HIDDEN)
        self.head = nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> Tensor:
        part = x[:, :8] @ self.wide.weight[:, :8].mT
        return torch.as_tensor(self.head(torch.tanh(self.wide(x) + part)))


class Penalty(nn.Module):
    """A norm of the weight is an output of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        y = self.head(torch.tanh(self.first(x)))
        return {"y": y, "norm": self.first.weight.square().sum().expand(x.shape[0], 1)}


class Borrowed(nn.Module):
    """A layer that a part holds in a plain list, so that torch does not see it there."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)
        self.order: list[Any] = [self.first, torch.tanh, self.head]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.order:
            x = step(x)
        return x


class BoundMethod(nn.Module):
    """Holds its layer's forward as a function, which a replacement does not change."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, HIDDEN), nn.Linear(HIDDEN, OUT)
        self.project = self.first.forward

    def forward(self, x: Tensor) -> Tensor:
        return torch.as_tensor(self.head(torch.tanh(self.project(x))))


x = features(WIDTH)
SITUATIONS = {
    "used_with_other_shapes": Situation(OtherShapes, features(6, WIDTH), 2, default=True),
    "recursion": Situation(Recursion, x, 2),
    "linear_and_convolution": Situation(
        LinearAndConvolution, features(6, WIDTH), 2, {"conv": READ}
    ),
    "one_parameter_two_layers": Situation(SameParameterTwice, x, 1, {"first": SHARED}),
    "one_module_two_names": Situation(TwoNames, x, 2),
    "one_block_thrice": Situation(RepeatedBlock, features(WIDTH, name="input"), 2),
    "tied_head": Situation(Tied, tokens(40, 9), 2, default=True),
    "tied_head_with_bias": Situation(lambda: Tied(bias=True), tokens(40, 9), 2),
    "tied_thrice": Situation(TiedThrice, tokens(40, 9), 1, {"source": SHARED}),
    "tied_transposed": Situation(TiedTransposed, x, 1, {"encode": READ}),
    "free_parameters": Situation(
        FreeParameters,
        x,
        1,
        {"": "matrix form", "rest": "reads its weight", "named": "reads its weight"},
    ),
    "slice_of_a_weight": Situation(Slices, x, 1, {"wide": READ}),
    "norm_as_output": Situation(Penalty, x, 1, {"first": READ}),
    "layers_in_a_plain_list": Situation(Borrowed, x, 0, refused="through another reference"),
    "bound_forward": Situation(BoundMethod, x, 1, {"first.product": "reads its weight"}),
}
