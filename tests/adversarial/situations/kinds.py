"""Layers of every kind: those with a matrix form among those without one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from adversarial.situations.situation import Situation, features, tokens

WIDTH, HIDDEN, OUT = 24, 48, 20
NONE = "has no matrix form here"
RECURRENT = "recurrent weights"
PARAMETRIZED = "layer.parametrizations.weight"


class Around(nn.Module):
    """`use` applies the layer to x; a Linear before and one behind it are compressed."""

    def __init__(
        self,
        layer: nn.Module,
        use: Callable[[nn.Module, Tensor], Tensor],
        width: int = HIDDEN,
        out: int = HIDDEN,
    ) -> None:
        super().__init__()
        self.before = nn.Linear(WIDTH, width)
        self.layer = layer
        self.use = use
        self.behind = nn.Linear(out, OUT)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.before(x))
        return torch.as_tensor(self.behind(torch.tanh(self.use(self.layer, h))))


def call(layer: nn.Module, h: Tensor) -> Tensor:
    return torch.as_tensor(layer(h))


def recurrent(layer: nn.Module, h: Tensor) -> Tensor:
    return torch.as_tensor(layer(h)[0].mean(1))


def cell(layer: nn.Module, h: Tensor) -> Tensor:
    state = layer(h)
    return torch.as_tensor(layer(h, state)[0] if isinstance(state, tuple) else layer(h, state))


def line(layer: nn.Module, h: Tensor) -> Tensor:
    """(examples, length, channels) through a layer of channels first."""
    return torch.as_tensor(layer(h.mT).mean(-1))


def grid(layer: nn.Module, h: Tensor) -> Tensor:
    return torch.as_tensor(layer(h.mT.unflatten(-1, (2, 3))).mean((-1, -2)))


def volume(layer: nn.Module, h: Tensor) -> Tensor:
    return torch.as_tensor(layer(h.mT.unflatten(-1, (1, 2, 3))).mean((-1, -2, -3)))


class Bags(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(60, WIDTH, mode="mean")
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, input_ids: Tensor) -> Tensor:
        return torch.as_tensor(self.head(torch.tanh(self.bag(input_ids))))


class Padded(nn.Module):
    """An embedding with a padding row, and ids of two tables."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(60, WIDTH, padding_idx=0)
        self.head = nn.Linear(WIDTH, OUT)

    def forward(self, input_ids: Tensor) -> Tensor:
        return torch.as_tensor(self.head(torch.tanh(self.words(input_ids)).mean(1)))


class BatchNormed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 24, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(24)
        self.next = nn.Conv2d(24, 24, 3, bias=False)
        self.next_norm = nn.BatchNorm2d(24, affine=False)
        self.head = nn.Linear(24, OUT)
        for norm in (self.norm, self.next_norm):
            norm.running_mean = torch.linspace(-0.5, 0.5, 24)
            norm.running_var = torch.linspace(0.5, 2, 24)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        x = torch.relu(self.next_norm(self.next(x)))
        return torch.as_tensor(self.head(x.mean((-1, -2))))


def pruned() -> nn.Module:
    layer = nn.Linear(HIDDEN, HIDDEN)
    prune.l1_unstructured(layer, "weight", 0.3)
    return layer


def transformer() -> nn.Module:
    block = nn.TransformerEncoderLayer(HIDDEN, 4, 64, dropout=0.1, batch_first=True)
    return nn.TransformerEncoder(block, 2, enable_nested_tensor=False)


def _row(
    layer: Callable[[], nn.Module],
    use: Callable[[nn.Module, Tensor], Tensor] = call,
    *,
    length: int = 0,
    layers: int = 2,
    left: str | dict[str, str] = "",
    out: int = HIDDEN,
    default: bool = False,
    says: tuple[str, ...] = (),
    refused: str = "",
) -> Situation:
    shape = (length, WIDTH) if length else (WIDTH,)
    return Situation(
        lambda: Around(layer(), use, out=out),
        features(*shape),
        layers,
        {"layer": left} if isinstance(left, str) and left else left or {},
        says,
        default=default,
        refused=refused,
        late=bool(refused),
    )


on_line = partial(_row, use=line, length=6)
on_grid = partial(_row, use=grid, length=6)

SITUATIONS = {
    "bilinear": _row(lambda: nn.Bilinear(HIDDEN, HIDDEN, HIDDEN), lambda m, h: m(h, h), left=NONE),
    "rnn": _row(lambda: nn.RNN(HIDDEN, HIDDEN, batch_first=True), recurrent, length=6,
                left=RECURRENT, says=("but its trace does not",)),
    "gru_two_ways": _row(
        lambda: nn.GRU(HIDDEN, 24, 2, batch_first=True, bidirectional=True), recurrent, length=6,
        left=RECURRENT,
    ),
    "lstm": _row(lambda: nn.LSTM(HIDDEN, HIDDEN, batch_first=True), recurrent, length=6,
                 left=RECURRENT),
    "gru_cell": _row(lambda: nn.GRUCell(HIDDEN, HIDDEN), cell, left=RECURRENT),
    "lstm_cell": _row(lambda: nn.LSTMCell(HIDDEN, HIDDEN), cell, left=RECURRENT),
    "transposed_1d": on_line(lambda: nn.ConvTranspose1d(HIDDEN, HIDDEN, 3, 2), left=NONE),
    "transposed_2d": on_grid(lambda: nn.ConvTranspose2d(HIDDEN, HIDDEN, 2, 2), left=NONE),
    "conv3d": _row(lambda: nn.Conv3d(HIDDEN, HIDDEN, (1, 2, 2)), volume, length=6, left=NONE),
    "conv1d": on_line(lambda: nn.Conv1d(HIDDEN, HIDDEN, 3), layers=3),
    "conv1d_dilated_grouped": on_line(
        lambda: nn.Conv1d(HIDDEN, HIDDEN, 2, dilation=3, groups=2, padding=2), layers=3,
        default=True,
    ),
    "conv1d_circular": on_line(
        lambda: nn.Conv1d(HIDDEN, HIDDEN, 3, padding=1, padding_mode="circular"), layers=3
    ),
    "conv1d_same_strided_reflect": on_line(
        lambda: nn.Conv1d(HIDDEN, HIDDEN, 3, 2, padding=1, padding_mode="reflect"), layers=3
    ),
    "conv2d_oblong": on_grid(
        lambda: nn.Conv2d(HIDDEN, HIDDEN, (1, 3), (2, 1), padding=(0, 1)), layers=3
    ),
    "conv2d_same": on_grid(lambda: nn.Conv2d(HIDDEN, HIDDEN, (2, 3), padding="same"), layers=3),
    "conv2d_replicate": on_grid(
        lambda: nn.Conv2d(HIDDEN, HIDDEN, 3, padding=2, padding_mode="replicate"), layers=3
    ),
    "depthwise": on_grid(
        lambda: nn.Conv2d(HIDDEN, HIDDEN, 2, groups=HIDDEN), left="single row or column"
    ),
    "depthwise_multiplied": on_grid(
        lambda: nn.Conv2d(HIDDEN, 2 * HIDDEN, 3, padding=1, groups=HIDDEN), layers=3,
        out=2 * HIDDEN,
    ),
    "weight_norm": _row(lambda: parametrizations.weight_norm(nn.Linear(HIDDEN, HIDDEN)),
                        left={PARAMETRIZED: "computed"}),
    "spectral_norm": _row(lambda: parametrizations.spectral_norm(nn.Linear(HIDDEN, HIDDEN)),
                          left={PARAMETRIZED: "computed"}),
    "orthogonal": _row(lambda: parametrizations.orthogonal(nn.Linear(HIDDEN, HIDDEN)),
                       refused="No ONNX function found for"),
    "old_weight_norm": _row(lambda: nn.utils.weight_norm(nn.Linear(HIDDEN, HIDDEN)),
                            left="computed"),
    "pruned": _row(pruned, left="computed"),
    "attention": _row(
        lambda: nn.MultiheadAttention(HIDDEN, 4, batch_first=True),
        lambda m, h: m(h, h, h)[0].mean(1), length=6, layers=6,
    ),
    "encoder": _row(transformer, lambda m, h: m(h).mean(1), length=6, layers=14),
    "batch_norms": Situation(BatchNormed, features(3, 7, 7), 3),
    "embedding_bag": Situation(
        Bags, tokens(60, 9), 1, {"bag": "calls no linear layer"}, default=True
    ),
    "embedding_padded": Situation(Padded, tokens(60, 9), 2),
}  # fmt: skip
