"""The module of a block-diagonal matrix plus a low-rank one."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.structures.block_rows import block_diagonal
from lrcompress.structures.factorized import _bias, _parameter


class BlockDiagonalLinear(nn.Module):
    """y = blockdiag(D_1 .. D_b) x + rest(x) + bias;  block_weight: (b, q, p), every D_i^T.

    Stored in the layout of the product: a transposed constant would not be recognised in the graph.
    """

    def __init__(
        self,
        block_weight: nn.Parameter,
        rest: nn.Module | None,
        bias: nn.Parameter | None,
        features: tuple[int, int],
    ) -> None:
        super().__init__()
        self.block_weight, self.rest, self.bias = block_weight, rest, bias
        self.out_features, self.in_features = features

    @classmethod
    def like(
        cls,
        layer: nn.Module,
        blocks: Tensor,
        rest: nn.Module | None,
        bias: Tensor | None,
        features: tuple[int, int],
    ) -> Self:
        """blocks: (b, p, q)  rest: the module added to them, without a bias."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        return cls(_parameter(blocks.mT, weight), rest, _bias(bias, layer), features)

    @property
    def weight(self) -> Tensor:
        whole = block_diagonal(self.block_weight.mT)[: self.out_features, : self.in_features]
        if self.rest is None:
            return whole
        rest = self.rest.weight
        assert isinstance(rest, Tensor)
        return whole + rest

    def forward(self, input: Tensor) -> Tensor:
        count, q, p = self.block_weight.shape
        rows = input.reshape(-1, self.in_features)
        if count * q > self.in_features:
            rows = functional.pad(rows, (0, count * q - self.in_features))
        cells = rows.reshape(-1, count, q).transpose(0, 1)  # (b, rows, q)
        cells = torch.bmm(cells, self.block_weight).transpose(0, 1)  # (rows, b, p)
        out = cells.reshape(*input.shape[:-1], count * p)
        if count * p > self.out_features:
            out = out[..., : self.out_features]
        if self.rest is not None:
            out = out + self.rest(input)
        return out if self.bias is None else out + self.bias
