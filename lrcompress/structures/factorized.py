"""Modules that compute a product of factors without forming the dense weight.

They consist of standard torch layers, which adapters, optimisers and exporters support. The
`weight` property forms the dense matrix for code that reads a layer's dtype or shape. No forward
uses it (ONNX Runtime would fold a product of constants back to the dense weight). Forward arguments
and size attributes have the names of the replaced torch layer's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional


def parameter_like(values: Tensor, layer: nn.Module, name: str = "weight") -> nn.Parameter:
    """`values` as a parameter with the dtype, device and requires_grad of the layer's `name`."""
    like = getattr(layer, name)
    assert isinstance(like, Tensor)
    return nn.Parameter(
        values.to(dtype=like.dtype, device=like.device).contiguous(),
        requires_grad=like.requires_grad,
    )


def bias_like(values: Tensor | None, layer: nn.Module) -> nn.Parameter | None:
    """A copy of `values` like the layer's bias; a new bias is like the weight."""
    if values is None:
        return None
    return parameter_like(values.clone(), layer, "weight" if layer.bias is None else "bias")


def linear_of(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """An nn.Linear of the given parameters, built on the meta device to skip initialisation."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = weight
    if bias is not None:
        layer.bias = bias
    return layer


def linear_like(layer: nn.Module, weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """An nn.Linear of the given values, with the layer's dtype, device and requires_grad."""
    return linear_of(parameter_like(weight, layer), bias_like(bias, layer))


@dataclass(frozen=True, eq=False)
class Stage:
    """One convolution; kernel: (out, in/groups, *kernel), of size 1 along other stages' axes.

    It is grouped if its kernel has fewer input channels than the previous stage has outputs.
    """

    kernel: Tensor
    axes: tuple[int, ...] = ()  # kernel axes of the layer that this stage handles


def convolution(
    layer: nn.Conv1d | nn.Conv2d, stage: Stage, channels: int, bias: Tensor | None
) -> nn.Conv1d | nn.Conv2d:
    """Build a stage of the replacement of `layer`; channels: of its input.

    It is built on the meta device to skip initialisation.
    """
    make = nn.Conv1d if isinstance(layer, nn.Conv1d) else nn.Conv2d

    def own(values: Sequence[int], otherwise: int) -> tuple[int, ...]:
        return tuple(v if axis in stage.axes else otherwise for axis, v in enumerate(values))

    padding: str | tuple[int, ...]
    if isinstance(layer.padding, str):
        padding = layer.padding if stage.axes else "valid"
    else:
        padding = own(layer.padding, 0)
    built = make(
        channels,
        stage.kernel.shape[0],
        tuple(stage.kernel.shape[2:]),  # type: ignore[arg-type]  # Conv1d and Conv2d differ here
        stride=own(layer.stride, 1),  # type: ignore[arg-type]
        padding=padding,  # type: ignore[arg-type]
        dilation=own(layer.dilation, 1),  # type: ignore[arg-type]
        groups=channels // stage.kernel.shape[1],
        bias=bias is not None,
        padding_mode=layer.padding_mode if stage.axes else "zeros",
        device="meta",
    )
    built.weight = parameter_like(stage.kernel, layer)
    if bias is not None:
        built.bias = bias_like(bias, layer)
    return built


class FactorizedLinear(nn.Module):
    """A low-rank linear layer, y = up(down(x));  down: (r, n)  up: (m, r)."""

    def __init__(self, down: nn.Linear, up: nn.Linear) -> None:
        super().__init__()
        self.down = down
        self.up = up
        self.in_features, self.out_features = down.in_features, up.out_features

    @classmethod
    def like(cls, layer: nn.Module, left: Tensor, right: Tensor, bias: Tensor | None) -> Self:
        return cls(linear_like(layer, right), linear_like(layer, left, bias))

    @property
    def weight(self) -> Tensor:
        return self.up.weight @ self.down.weight

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.up(self.down(input))
        return out


class FactorizedEmbedding(nn.Module):
    """A low-rank embedding, y = up(codes[token]);  codes: (vocabulary, r)  up: (m, r)."""

    def __init__(self, codes: nn.Embedding, up: nn.Linear) -> None:
        super().__init__()
        self.codes = codes
        self.up = up
        self.num_embeddings, self.embedding_dim = codes.num_embeddings, up.out_features
        self.padding_idx = codes.padding_idx

    @classmethod
    def like(cls, layer: nn.Module, left: Tensor, right: Tensor) -> Self:
        assert isinstance(layer, nn.Embedding)
        codes = nn.Embedding(
            right.shape[1], right.shape[0], padding_idx=layer.padding_idx, device="meta"
        )
        codes.weight = parameter_like(right.mT, layer)
        return cls(codes, linear_like(layer, left))

    @property
    def weight(self) -> Tensor:
        return self.codes.weight @ self.up.weight.mT

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.up(self.codes(input))
        return out


class TiedFactorizedHead(nn.Module):
    """An output head that shares a factorized embedding's factors: y = codes (up^T x) + b."""

    def __init__(self, embedding: FactorizedEmbedding, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.codes = embedding.codes
        self.up = embedding.up
        self.bias = bias
        self.in_features = embedding.embedding_dim
        self.out_features = embedding.num_embeddings

    @property
    def weight(self) -> Tensor:
        return self.codes.weight @ self.up.weight.mT

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input @ self.up.weight, self.codes.weight, self.bias)


class TiedHead(nn.Module):
    """An output head that shares an embedding's table: y = table x + b."""

    def __init__(self, embedding: nn.Embedding, bias: nn.Parameter | None) -> None:
        super().__init__()
        self.table = embedding
        self.bias = bias
        self.in_features = embedding.embedding_dim
        self.out_features = embedding.num_embeddings

    @property
    def weight(self) -> Tensor:
        return self.table.weight

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.table.weight, self.bias)


class FactorizedConv(nn.Module):
    """A low-rank convolution, y = up(down(x)): one to r channels per group, then a 1x1 one.

    down: (groups * r, in/groups, *kernel)  up: (groups * m, r, 1...).
    """

    def __init__(self, down: nn.Conv1d | nn.Conv2d, up: nn.Conv1d | nn.Conv2d) -> None:
        super().__init__()
        self.down = down
        self.up = up
        self.in_channels, self.out_channels = down.in_channels, up.out_channels
        self.kernel_size, self.stride, self.padding = down.kernel_size, down.stride, down.padding
        self.dilation, self.groups = down.dilation, down.groups
        self.padding_mode = down.padding_mode

    @classmethod
    def like(cls, layer: nn.Module, left: Tensor, right: Tensor, bias: Tensor | None) -> Self:
        assert isinstance(layer, nn.Conv1d | nn.Conv2d)
        groups, m, rank = left.shape
        kernel = right.reshape(groups * rank, *layer.weight.shape[1:])
        axes = tuple(range(len(layer.kernel_size)))
        down = convolution(layer, Stage(kernel, axes), layer.in_channels, None)
        up = type(down)(
            groups * rank, groups * m, 1, groups=groups, bias=bias is not None, device="meta"
        )
        ones = (1,) * len(axes)
        up.weight = parameter_like(left.reshape(groups * m, rank, *ones), layer)
        if bias is not None:
            up.bias = bias_like(bias, layer)
        return cls(down, up)

    @property
    def weight(self) -> Tensor:
        groups = self.down.groups
        up = self.up.weight.reshape(groups, -1, self.up.weight.shape[1])
        down = self.down.weight.reshape(groups, up.shape[-1], -1)
        return torch.bmm(up, down).reshape(-1, *self.down.weight.shape[1:])

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, input: Tensor) -> Tensor:
        out: Tensor = self.up(self.down(input))
        return out
