"""Small networks by which axes they take in other sizes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lrcompress.network.batches import Batch


class Of(nn.Module):
    """Layers, and what is done with them and an input `x`."""

    def __init__(self, forward: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        for name, layer in layers.items():
            self.add_module(name, layer)
        self.what = forward

    def forward(self, x: Tensor) -> Tensor:
        return self.what(self, x)


class Board(nn.Module):
    """A fixed number of squares, flattened into a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.square, self.out = nn.Embedding(13, 4), nn.Linear(9 * 4, 5)

    def forward(self, board: Tensor) -> Tensor:
        out: Tensor = self.out(self.square(board).flatten(1))
        return out


class Pyramid(nn.Module):
    """Down twice and up twice, with a skip: the sides are multiples of four."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, 2, 1)
        self.up, self.out = nn.ConvTranspose2d(6, 6, 2, 2), nn.ConvTranspose2d(12, 3, 2, 2)

    def forward(self, x: Tensor) -> Tensor:
        half = self.down(x).relu()
        out: Tensor = self.out(torch.cat([self.up(self.deep(half).relu()), half], 1))
        return out


class Patches(nn.Module):
    """A small vision transformer's stem: absolute positions, one for each patch."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, 8, 4, 4)
        self.position = nn.Parameter(torch.randn(1, 16, 8))
        self.out = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patch(x).flatten(2).transpose(1, 2) + self.position
        out: Tensor = self.out(tokens.relu().mean(1))
        return out


class TwoLengths(nn.Module):
    """Attention from a decoder's ids to an encoder's, which a mask goes with."""

    def __init__(self) -> None:
        super().__init__()
        self.read, self.write = nn.Embedding(20, 8), nn.Embedding(20, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_ids: Tensor) -> Tensor:
        x, y = self.read(input_ids), self.write(decoder_ids)
        scores = (y @ x.transpose(1, 2)).masked_fill(attention_mask[:, None] == 0, -1e9)
        return y + scores.softmax(-1) @ x


class Positions(nn.Module):
    """Learnt positions, looked up: nothing in a trace tells how many there are."""

    def __init__(self) -> None:
        super().__init__()
        self.word, self.place = nn.Embedding(20, 8), nn.Embedding(24, 8)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.word(input_ids) + self.place(places)
        scores = (x @ x.transpose(1, 2)).masked_fill(attention_mask[:, None] == 0, -1e9)
        return scores.softmax(-1) @ x


class Neighbours(nn.Module):
    """A graph's adjacency, square, and features of as many nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, adjacency: Tensor, nodes: Tensor) -> dict[str, Tensor]:
        return {"nodes": self.out(adjacency @ nodes), "hops": adjacency @ adjacency}


class Pairs(nn.Module):
    """Examples in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(10, 3)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.out(x.reshape(x.shape[0] // 2, 2, 5).flatten(1).repeat_interleave(2, 0))
        return out


class IgnoredInput(nn.Module):
    """Takes an input that its output does not depend on."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(5, 3)

    def forward(self, x: Tensor, extra: Tensor) -> Tensor:
        out: Tensor = self.out(x)
        return out


def ids(rows: int, length: int, high: int = 13) -> Tensor:
    return torch.randint(high, (rows, length))


def board() -> Board:
    torch.manual_seed(0)
    return Board().eval()


def boards() -> list[Batch]:
    torch.manual_seed(1)
    return [{"board": ids(16, 9)} for _ in range(4)]
