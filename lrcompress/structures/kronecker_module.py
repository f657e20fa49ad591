"""The module of a sum of Kronecker products: two products, of which the second sums the terms."""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.structures.factorized import _bias, _parameter
from lrcompress.structures.structure import Factors


class KroneckerLinear(nn.Module):
    """Y = sum_k A_k X B_k^T + bias, with x and y as matrices X: (n1, n2)  Y: (m1, m2).

    right_weight: (n2, K m2), [B_1^T .. B_K^T]  left_weight: (m1, n1 K), all A_k with k fastest.
    """

    def __init__(
        self,
        left_weight: nn.Parameter,
        right_weight: nn.Parameter,
        bias: nn.Parameter | None,
        terms: int,
        features: tuple[int, int],
    ) -> None:
        super().__init__()
        self.left_weight, self.right_weight, self.bias = left_weight, right_weight, bias
        self.terms, (self.out_features, self.in_features) = terms, features

    @classmethod
    def like(
        cls, layer: nn.Module, factors: Factors, bias: Tensor | None, features: tuple[int, int]
    ) -> Self:
        """left: (K, m1, n1)  right: (K, m2, n2)."""
        weight = layer.weight
        assert isinstance(weight, Tensor)
        left = _parameter(factors["left"].permute(1, 2, 0).flatten(1), weight)
        right = _parameter(factors["right"].permute(2, 0, 1).flatten(1), weight)
        return cls(left, right, _bias(bias, layer), len(factors["left"]), features)

    @property
    def weight(self) -> Tensor:
        m1, n2, terms = len(self.left_weight), len(self.right_weight), self.terms
        left = self.left_weight.reshape(m1, -1, terms)
        right = self.right_weight.reshape(n2, terms, -1)
        n1, m2 = left.shape[1], right.shape[2]
        whole = left.reshape(-1, terms) @ right.transpose(0, 1).reshape(terms, -1)
        whole = whole.reshape(m1, n1, n2, m2).permute(0, 3, 1, 2).reshape(m1 * m2, n1 * n2)
        return whole[: self.out_features, : self.in_features]

    def forward(self, input: Tensor) -> Tensor:
        m1, inner = self.left_weight.shape
        n1, n2 = inner // self.terms, len(self.right_weight)
        m2 = self.right_weight.shape[1] // self.terms
        rows = input.reshape(-1, self.in_features)
        if n1 * n2 > self.in_features:
            rows = functional.pad(rows, (0, n1 * n2 - self.in_features))
        cells = rows.reshape(-1, n2) @ self.right_weight  # (rows n1, K m2)
        cells = torch.matmul(self.left_weight, cells.reshape(-1, inner, m2))  # (rows, m1, m2)
        out = cells.reshape(*input.shape[:-1], m1 * m2)
        if m1 * m2 > self.out_features:
            out = out[..., : self.out_features]
        return out if self.bias is None else out + self.bias
