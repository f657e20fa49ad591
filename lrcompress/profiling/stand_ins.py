"""Stand-ins: modules built like structures that compute a dense layer from its own weight.

They cost no memory. They call torch's function, not the layer's forward, so that a patched forward
shows as a difference.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from torch import Tensor, nn
from torch.nn import functional

from lrcompress.layers import LayerSpec
from lrcompress.structures.factorized import (
    FactorizedConv,
    FactorizedEmbedding,
    FactorizedLinear,
    TiedFactorizedHead,
)

WRONG = -2.0  # factor on the values of a stand-in's `weight`


def _nothing() -> None:
    pass


class StandIn(nn.Module):
    """Base of the stand-ins; `on_call` is called at every forward."""

    on_call: Callable[[], None] = staticmethod(_nothing)

    @property
    def weight(self) -> Tensor:
        own = cast(Any, self)
        product: nn.Module = own.codes if hasattr(self, "codes") else own.down
        return WRONG * cast(Tensor, product.weight)

    def forward(self, input: Tensor) -> Tensor:
        self.on_call()
        out: Tensor = super().forward(input)
        return out


class _Linear(StandIn, FactorizedLinear):
    pass


class _Embedding(StandIn, FactorizedEmbedding):
    pass


class _Conv(StandIn, FactorizedConv):
    pass


class _Head(StandIn, TiedFactorizedHead):
    def forward(self, input: Tensor) -> Tensor:
        self.on_call()
        return functional.linear(input, self.codes.weight, self.bias)


class _Product(nn.Module):
    """The layer's product with its own weight and bias."""

    def __init__(self, layer: Any, spec: LayerSpec) -> None:
        super().__init__()
        weight = layer.weight
        if spec.kind == "transposed_linear":
            weight = nn.Parameter(weight.detach().mT, requires_grad=False)  # a view
        self.weight = weight
        self.added = [None if spec.kind == "embedding" else layer.bias]  # not registered here
        self.kind = spec.kind
        self.in_features, self.out_features = spec.in_features, spec.out_features
        if spec.kind == "embedding":
            self.num_embeddings, self.padding_idx = layer.num_embeddings, layer.padding_idx
        if spec.kind in ("conv1d", "conv2d"):
            for name in _CONVOLUTION:
                setattr(self, name, getattr(layer, name))
        self.pads = list(getattr(layer, "_reversed_padding_repeated_twice", ()))

    def forward(self, input: Tensor) -> Tensor:
        if self.kind in ("linear", "transposed_linear"):
            return functional.linear(input, self.weight, self.added[0])
        if self.kind == "embedding":
            return functional.embedding(input, self.weight)
        convolve = functional.conv1d if self.kind == "conv1d" else functional.conv2d
        layer = cast(Any, self)
        padding = layer.padding
        if layer.padding_mode != "zeros":
            input, padding = functional.pad(input, self.pads, mode=layer.padding_mode), 0
        return convolve(
            input, self.weight, self.added[0], layer.stride, padding, layer.dilation, layer.groups
        )


_CONVOLUTION = (
    "in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups",
    "padding_mode",
)  # fmt: skip


class _Rest(nn.Module):
    """The identity, in place of the other factor, which holds the bias."""

    def __init__(self, layer: Any, spec: LayerSpec) -> None:
        super().__init__()
        self.bias = None if spec.kind == "embedding" else layer.bias
        self.out_features, self.out_channels = spec.out_features, spec.groups * spec.out_features

    def forward(self, input: Tensor) -> Tensor:
        return input


def stand_ins(module: nn.Module, spec: LayerSpec) -> dict[str, StandIn]:
    """Return stand-ins for a layer and for the heads tied to it, by name."""
    layer = module.get_submodule(spec.name)
    product, rest = cast(Any, _Product(layer, spec)), cast(Any, _Rest(layer, spec))
    if spec.kind in ("linear", "transposed_linear"):
        return {spec.name: _Linear(product, rest)}
    if spec.kind != "embedding":
        return {spec.name: _Conv(product, rest)}
    embedding = _Embedding(product, rest)
    heads = {name: cast(Any, module.get_submodule(name)) for name in spec.tied}
    return {
        spec.name: embedding,
        **{name: _Head(embedding, head.bias) for name, head in heads.items()},
    }
