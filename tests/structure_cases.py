"""Layers of every kind, and sizes of every structure for them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrcompress.layers import LayerSpec
from lrcompress.structures import (
    CP,
    Blast,
    BlockDiagonal,
    Dense,
    Interpolative,
    Kronecker,
    LowRank,
    Monarch,
    SpatialLowRank,
    Structure,
    TensorTrain,
    Tucker2,
)


def _low_ranks(spec: LayerSpec) -> list[Structure]:
    largest = min(spec.out_features, spec.in_features)
    return [LowRank(rank) for rank in range(1, largest + 1)]


def _cps(spec: LayerSpec) -> list[Structure]:
    if spec.kind not in ("conv1d", "conv2d") or spec.groups != 1:
        return []
    positions = prod(spec.kernel)
    largest = positions * min(spec.out_features, spec.in_features // positions)
    return [CP(rank) for rank in (1, 3, largest)]


def _spatial(spec: LayerSpec) -> list[Structure]:
    if spec.kind != "conv2d" or spec.groups != 1:
        return []
    width = spec.kernel[1]
    largest = min(spec.in_features // width, spec.out_features * width)
    return [SpatialLowRank(rank) for rank in (*range(1, largest, 2), largest)]


def _tensor_trains(spec: LayerSpec) -> list[Structure]:
    if spec.kind != "embedding" or spec.tied:
        return []
    return [TensorTrain(rank, cores=3) for rank in (1, 2, 3, 4)]


def _tuckers(spec: LayerSpec) -> list[Structure]:
    if spec.kind not in ("conv1d", "conv2d") or spec.groups != 1:
        return []
    channels = spec.in_features // prod(spec.kernel)
    ranks = range(1, channels + 1)
    return [Tucker2(rank * spec.out_features // channels, rank) for rank in ranks]


def _interpolatives(spec: LayerSpec) -> list[Structure]:
    if spec.kind not in Interpolative.kinds:
        return []
    side = min(spec.out_features, spec.in_features)
    chunk = 2 if side % 2 == 0 else 1
    return [Interpolative(rank, chunk) for rank in range(chunk, side + 1, chunk)]


def _block_diagonals(spec: LayerSpec) -> list[Structure]:
    if spec.kind not in BlockDiagonal.kinds:
        return []
    largest = min(spec.out_features, spec.in_features)
    return [BlockDiagonal(rank, 2) for rank in range(largest + 1)]


def _monarchs(spec: LayerSpec) -> list[Structure]:
    if spec.kind not in Monarch.kinds:
        return []
    largest = -(-min(spec.out_features, spec.in_features) // 2)
    return [Monarch(rank, 2) for rank in range(1, largest + 1)]


def _kroneckers(spec: LayerSpec) -> list[Structure]:
    if spec.kind not in Kronecker.kinds:
        return []
    split = Kronecker(1).split(spec)
    largest = min(split.m1 * split.n1, split.m2 * split.n2)
    return [Kronecker(rank) for rank in range(1, largest + 1)]


def _blasts(spec: LayerSpec) -> list[Structure]:
    """Blocks that divide no size of the layers below."""
    if spec.kind not in Blast.kinds or spec.tied:
        return []
    return [Blast(rank, 2, 3) for rank in range(1, min(spec.out_features, spec.in_features) + 1)]


# Structures of a type from the smallest to the one that can hold any weight; none where the type
# does not suit the layer, which its `check` then refuses.
# Structures of which some work is done at input pixels. flops_per_row takes their number as that of
# output pixels times the stride; with padding, the true number differs by the border.
COUNT_INPUT_PIXELS = ("cp", "spatial", "tucker2")


SIZES: dict[str, Callable[[LayerSpec], list[Structure]]] = {
    "dense": lambda spec: [Dense()],
    "low_rank": _low_ranks,
    "blast": _blasts,
    "cp": _cps,
    "spatial": _spatial,
    "tucker2": _tuckers,
    "tensor_train": _tensor_trains,
    "interpolative": _interpolatives,
    "block_diagonal": _block_diagonals,
    "monarch": _monarchs,
    "kronecker": _kroneckers,
}


class Host(nn.Module):
    """A network of one layer, with an output head tied to it if asked for."""

    def __init__(self, layer: nn.Module, *, tied: bool = False) -> None:
        super().__init__()
        self.layer = layer
        self.head = nn.Linear(layer.weight.shape[1], layer.weight.shape[0]) if tied else None
        if self.head is not None:
            self.head.weight = layer.weight

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        return out if self.head is None else self.head(out)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]  # of an input; tokens for embeddings
    tied: bool = False

    def host(self, dtype: torch.dtype = torch.float64) -> Host:
        torch.manual_seed(0)
        return Host(self.make(), tied=self.tied).to(dtype).eval()

    def inputs(self, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        if isinstance(self.make(), nn.Embedding):
            return torch.randint(12, self.shape, generator=generator)
        return torch.randn(self.shape, generator=generator, dtype=torch.float64).to(dtype)


IMAGE = (2, 4, 7, 6)


KINDS: dict[str, Case] = {
    "linear": Case(lambda: nn.Linear(7, 5), (2, 3, 7)),
    "linear without bias": Case(lambda: nn.Linear(5, 7, bias=False), (3, 5)),
    "gpt2 conv1d": Case(lambda: Conv1D(6, 4), (2, 3, 4)),
    "embedding": Case(lambda: nn.Embedding(12, 5, padding_idx=0), (2, 3)),
    "tied embedding": Case(lambda: nn.Embedding(12, 5), (2, 3), tied=True),
    "conv1d": Case(lambda: nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    "conv1d circular": Case(
        lambda: nn.Conv1d(4, 6, 3, padding=2, padding_mode="circular", groups=2), (2, 4, 9)
    ),
    "conv2d strided": Case(lambda: nn.Conv2d(4, 6, 3, stride=(2, 1), padding=(1, 2)), IMAGE),
    "conv2d grouped": Case(lambda: nn.Conv2d(4, 6, (2, 3), groups=2, bias=False), IMAGE),
    "conv2d same": Case(lambda: nn.Conv2d(4, 6, 3, padding="same", dilation=(2, 1)), IMAGE),
    "conv2d reflect": Case(lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), IMAGE),
    "conv2d circular same": Case(
        lambda: nn.Conv2d(4, 6, (3, 1), padding="same", padding_mode="circular"), IMAGE
    ),
    "conv2d without a batch": Case(lambda: nn.Conv2d(4, 6, 3), IMAGE[1:]),
}
