"""The module of a Monarch matrix: two batched products with a transpose between them."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.structures.factorized import _bias, _parameter
from lrcompress.structures.structure import Factors


class MonarchLinear(nn.Module):
    """y_i = sum_j L_ij R_ij x_j + bias_i.

    right_weight: (b, q, b r), [R_1j^T .. R_bj^T] for each j  left_weight: (b, b r, p), for each i.
    Stored in the layout of the product: a transposed constant would not be recognised in the graph.
    """

    def __init__(
        self,
        left_weight: nn.Parameter,
        right_weight: nn.Parameter,
        bias: nn.Parameter | None,
        features: tuple[int, int],
    ) -> None:
        super().__init__()
        self.left_weight, self.right_weight, self.bias = left_weight, right_weight, bias
        self.out_features, self.in_features = features

    @classmethod
    def like(
        cls, layer: nn.Module, factors: Factors, bias: Tensor | None, features: tuple[int, int]
    ) -> Self:
        """left: (b, p, b r)  right: (b, b r, q)."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        left, right = (_parameter(factors[name].mT, weight) for name in ("left", "right"))
        return cls(left, right, _bias(bias, layer), features)

    @property
    def weight(self) -> Tensor:
        blocks, inner, p = self.left_weight.shape
        left = self.left_weight.reshape(blocks, blocks, -1, p)  # (i, j, r, p)
        right = self.right_weight.reshape(blocks, -1, blocks, inner // blocks)  # (j, q, i, r)
        cells = left.mT @ right.permute(2, 0, 3, 1)  # (i, j, p, q)
        whole = cells.transpose(1, 2).reshape(blocks * p, -1)
        return whole[: self.out_features, : self.in_features]

    def forward(self, input: Tensor) -> Tensor:
        blocks, inner, p = self.left_weight.shape
        q, rank = self.right_weight.shape[1], inner // blocks
        rows = input.reshape(-1, self.in_features)
        if blocks * q > self.in_features:
            rows = functional.pad(rows, (0, blocks * q - self.in_features))
        cells = rows.reshape(-1, blocks, q).transpose(0, 1)
        cells = torch.bmm(cells, self.right_weight)  # (j, rows, i r)
        cells = cells.reshape(blocks, -1, blocks, rank).permute(2, 1, 0, 3)  # (i, rows, j, r)
        cells = torch.bmm(cells.reshape(blocks, -1, inner), self.left_weight)  # (i, rows, p)
        out = cells.transpose(0, 1).reshape(*input.shape[:-1], blocks * p)
        if blocks * p > self.out_features:
            out = out[..., : self.out_features]
        return out if self.bias is None else out + self.bias
