"""Modules of linear layers made of blocks: Monarch, Kronecker, and block-diagonal plus low rank.

Weights are stored in the layout of their product: a transposed constant would not be recognised in
the graph.
"""

from __future__ import annotations

from typing import Self

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.structures.block_rows import block_diagonal
from lrcompress.structures.factorized import bias_like, parameter_like
from lrcompress.structures.structure import Factors


class PaddedLinear(nn.Module):
    """A linear layer whose blocks may be larger than its features; the padding is zero."""

    bias: nn.Parameter | None

    def __init__(self, features: tuple[int, int]) -> None:
        """features: (out_features, in_features), without padding."""
        super().__init__()
        self.out_features, self.in_features = features

    def padded_rows(self, input: Tensor, size: int) -> Tensor:
        """(..., in_features) -> (rows, size)."""
        rows = input.reshape(-1, self.in_features)
        missing = size - self.in_features
        return functional.pad(rows, (0, missing)) if missing else rows

    def without_padding(self, out: Tensor, size: int) -> Tensor:
        """(..., size) -> (..., out_features)."""
        return out[..., : self.out_features] if size > self.out_features else out


class MonarchLinear(PaddedLinear):
    """y_i = sum_j L_ij R_ij x_j + bias_i.

    right_weight: (b, q, b r), [R_1j^T .. R_bj^T] for each j  left_weight: (b, b r, p), for each i.
    """

    def __init__(
        self,
        left_weight: nn.Parameter,
        right_weight: nn.Parameter,
        bias: nn.Parameter | None,
        features: tuple[int, int],
    ) -> None:
        super().__init__(features)
        self.left_weight, self.right_weight, self.bias = left_weight, right_weight, bias

    @classmethod
    def like(
        cls, layer: nn.Module, factors: Factors, bias: Tensor | None, features: tuple[int, int]
    ) -> Self:
        """left: (b, p, b r)  right: (b, b r, q)."""
        left, right = (parameter_like(factors[name].mT, layer) for name in ("left", "right"))
        return cls(left, right, bias_like(bias, layer), features)

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
        cells = self.padded_rows(input, blocks * q).reshape(-1, blocks, q).transpose(0, 1)
        cells = torch.bmm(cells, self.right_weight)  # (j, rows, i r)
        cells = cells.reshape(blocks, -1, blocks, rank).permute(2, 1, 0, 3)  # (i, rows, j, r)
        cells = torch.bmm(cells.reshape(blocks, -1, inner), self.left_weight)  # (i, rows, p)
        out = cells.transpose(0, 1).reshape(*input.shape[:-1], blocks * p)
        out = self.without_padding(out, blocks * p)
        return out if self.bias is None else out + self.bias


class KroneckerLinear(PaddedLinear):
    """Y = sum_k A_k X B_k^T + bias, with x and y as matrices X: (n1, n2)  Y: (m1, m2).

    Two products, of which the second sums the terms.
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
        super().__init__(features)
        self.left_weight, self.right_weight, self.bias = left_weight, right_weight, bias
        self.terms = terms

    @classmethod
    def like(
        cls, layer: nn.Module, factors: Factors, bias: Tensor | None, features: tuple[int, int]
    ) -> Self:
        """left: (K, m1, n1)  right: (K, m2, n2)."""
        left = parameter_like(factors["left"].permute(1, 2, 0).flatten(1), layer)
        right = parameter_like(factors["right"].permute(2, 0, 1).flatten(1), layer)
        return cls(left, right, bias_like(bias, layer), len(factors["left"]), features)

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
        rows = self.padded_rows(input, n1 * n2)
        cells = rows.reshape(-1, n2) @ self.right_weight  # (rows n1, K m2)
        cells = torch.matmul(self.left_weight, cells.reshape(-1, inner, m2))  # (rows, m1, m2)
        out = self.without_padding(cells.reshape(*input.shape[:-1], m1 * m2), m1 * m2)
        return out if self.bias is None else out + self.bias


class BlockDiagonalLinear(PaddedLinear):
    """y = blockdiag(D_1 .. D_b) x + rest(x) + bias;  block_weight: (b, q, p), every D_i^T."""

    def __init__(
        self,
        block_weight: nn.Parameter,
        rest: nn.Module | None,
        bias: nn.Parameter | None,
        features: tuple[int, int],
    ) -> None:
        """rest: the module added to the blocks, without a bias."""
        super().__init__(features)
        self.block_weight, self.rest, self.bias = block_weight, rest, bias

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
        cells = self.padded_rows(input, count * q).reshape(-1, count, q).transpose(0, 1)
        cells = torch.bmm(cells, self.block_weight).transpose(0, 1)  # (rows, b, p)
        out = self.without_padding(cells.reshape(*input.shape[:-1], count * p), count * p)
        if self.rest is not None:
            out = out + self.rest(input)
        return out if self.bias is None else out + self.bias
