"""Low-rank layers as two matrices, and updates of the same layer type with another rank."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.layers import weight_matrix
from lrcompress.messages import label
from lrcompress.structures.dynamic_input import DynamicLinear
from lrcompress.structures.factorized import (
    FactorizedConv,
    FactorizedEmbedding,
    FactorizedLinear,
)

LowRankLayer = FactorizedLinear | FactorizedEmbedding | FactorizedConv


def low_rank(name: str, layer: nn.Module) -> LowRankLayer:
    """Return `layer`, checked to be one product of two factors.

    Raises:
        TuneError: it is not such a product.
    """
    if not isinstance(layer, FactorizedLinear | FactorizedEmbedding | FactorizedConv):
        raise TuneError(
            f"{label(name)}: {type(layer).__name__} is not one product of two factors, to which "
            "an update could be truncated; take place factors"
        )
    return layer


def first_factor(layer: LowRankLayer) -> nn.Linear | nn.Embedding | nn.Conv1d | nn.Conv2d:
    return layer.codes if isinstance(layer, FactorizedEmbedding) else layer.down


def factor_matrices(layer: LowRankLayer) -> tuple[Tensor, Tensor]:
    """Return U: (groups, m, r) and V: (groups, r, n)."""
    return _matrix(layer.up), _matrix(first_factor(layer))


def _matrix(factor: nn.Module) -> Tensor:
    if isinstance(factor, DynamicLinear):
        return factor.weight.detach()[None]
    return weight_matrix(factor)


@torch.no_grad()
def write_factors_(layer: LowRankLayer, left: Tensor, right: Tensor) -> None:
    """Write U and V of `factor_matrices` into the layer, in the factors' dtype."""
    first = first_factor(layer).weight
    shaped = right.mT if isinstance(layer, FactorizedEmbedding) else right
    first.copy_(shaped.reshape(first.shape))
    layer.up.weight.copy_(left.reshape(layer.up.weight.shape))


def update_of(layer: LowRankLayer, rank: int) -> LowRankLayer:
    """Return an update whose product is zero, on the CPU, in float32 or float64.

    The zero factor is U; for an embedding it is the codes, so that the rows of tokens that no text
    contains do not change.
    """
    update: LowRankLayer
    if isinstance(layer, FactorizedEmbedding):
        codes = nn.Embedding(layer.num_embeddings, rank, padding_idx=layer.padding_idx)
        update = FactorizedEmbedding(codes, nn.Linear(rank, layer.embedding_dim, bias=False))
        nn.init.zeros_(codes.weight)
    else:
        if isinstance(layer, FactorizedLinear):
            down = nn.Linear(layer.in_features, rank, bias=False)
            update = FactorizedLinear(down, nn.Linear(rank, layer.out_features, bias=False))
        else:
            first = convolution_like(layer.down, layer.groups * rank)
            shape = (first.out_channels, layer.out_channels, 1)
            update = FactorizedConv(first, type(first)(*shape, groups=layer.groups, bias=False))
        nn.init.zeros_(update.up.weight)
    held = layer.up.weight.dtype
    return update.to(held if held is torch.float64 else torch.float32)


def convolution_like(layer: nn.Conv1d | nn.Conv2d, out_channels: int) -> nn.Conv1d | nn.Conv2d:
    """Return a new convolution on the CPU: every setting of `layer`, other channels, no bias."""
    make = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d
    return make(
        layer.in_channels,
        out_channels,
        layer.kernel_size,  # type: ignore[arg-type]  # Conv1d and Conv2d differ in the tuple
        stride=layer.stride,  # type: ignore[arg-type]
        padding=layer.padding,  # type: ignore[arg-type]
        dilation=layer.dilation,  # type: ignore[arg-type]
        groups=layer.groups,
        bias=False,
        padding_mode=layer.padding_mode,
    )
