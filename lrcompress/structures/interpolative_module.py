"""Modules that compute features as mixtures of the kept ones, without forming the dense weight.

Features are gathered in chunks of neighbours. On a CPU, ONNX Runtime's gather of single features
costs more than the product that it saves; a gather of chunks of eight costs a tenth of it.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn

from lrcompress.structures.factorized import bias_like, linear_like


def _chunks(input: Tensor, chosen: Tensor, chunk: int) -> Tensor:
    """Concatenate the chosen chunks of the last axis."""
    chunks = input.reshape(*input.shape[:-1], input.shape[-1] // chunk, chunk)
    return chunks.index_select(-2, chosen).flatten(-2)


class InterpolatedInputs(nn.Module):
    """A linear layer y = up(x_kept + mix(x_rest));  mix: (r, n - r)  up: (m, r)."""

    kept: Tensor
    rest: Tensor

    def __init__(self, mix: nn.Linear | None, up: nn.Linear, order: Tensor, chunk: int) -> None:
        """order: chunk indices of the inputs, the kept ones first."""
        super().__init__()
        self.mix, self.up, self.chunk = mix, up, chunk
        self.in_features, self.out_features = order.numel() * chunk, up.out_features
        self.register_buffer("kept", order[: up.in_features // chunk])
        self.register_buffer("rest", order[up.in_features // chunk :])

    @classmethod
    def like(
        cls,
        layer: nn.Module,
        up: Tensor,
        mix: Tensor | None,
        order: Tensor,
        chunk: int,
        bias: Tensor | None,
    ) -> Self:
        inner = None if mix is None else linear_like(layer, mix)
        outer = linear_like(layer, up, bias)
        return cls(inner, outer, order.to(outer.weight.device), chunk)

    @property
    def weight(self) -> Tensor:
        order = torch.cat([self.kept, self.rest])
        mixed = [] if self.mix is None else [self.up.weight @ self.mix.weight]
        ordered = torch.cat([self.up.weight, *mixed], -1)
        return _chunks(ordered, order.argsort(), self.chunk)

    @property
    def bias(self) -> Tensor | None:
        return self.up.bias

    def forward(self, input: Tensor) -> Tensor:
        x = _chunks(input, self.kept, self.chunk)
        if self.mix is not None:
            x = x + self.mix(_chunks(input, self.rest, self.chunk))
        out: Tensor = self.up(x)
        return out


class InterpolatedOutputs(nn.Module):
    """A linear layer y = [z, mix(z)], reordered, z = down(x);  down: (r, n)  mix: (m - r, r)."""

    order: Tensor

    def __init__(
        self,
        down: nn.Linear,
        mix: nn.Linear | None,
        order: Tensor,
        chunk: int,
        bias: nn.Parameter | None,
    ) -> None:
        """order: for each chunk of the outputs, its index in [kept chunks, other chunks]."""
        super().__init__()
        self.down, self.mix, self.chunk, self.bias = down, mix, chunk, bias
        self.in_features, self.out_features = down.in_features, order.numel() * chunk
        self.register_buffer("order", order)

    @classmethod
    def like(
        cls,
        layer: nn.Module,
        down: Tensor,
        mix: Tensor | None,
        order: Tensor,
        chunk: int,
        bias: Tensor | None,
    ) -> Self:
        """order: chunk indices of the outputs, the kept ones first."""
        inner = None if mix is None else linear_like(layer, mix)
        outer = linear_like(layer, down)
        place = order.argsort().to(outer.weight.device)
        return cls(outer, inner, place, chunk, bias_like(bias, layer))

    @property
    def weight(self) -> Tensor:
        mixed = [] if self.mix is None else [self.mix.weight @ self.down.weight]
        ordered = torch.cat([self.down.weight, *mixed])
        return _chunks(ordered.mT, self.order, self.chunk).mT

    def forward(self, input: Tensor) -> Tensor:
        kept = self.down(input)
        both = kept if self.mix is None else torch.cat([kept, self.mix(kept)], -1)
        out = _chunks(both, self.order, self.chunk)
        return out if self.bias is None else out + self.bias
