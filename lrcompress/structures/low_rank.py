"""Low rank: the truncated SVD of the whitened weight.

y = U (V x) + b;  U: (groups, m, r)  V: (groups, r, n)

With A = G^1/2 W C^1/2 = P S Q^T, the best rank-r weight in the metric is G^-1/2 [A]_r C^-1/2. Its
loss is 1/2 sum_{i>r} s_i^2 (Eckart-Young in the whitened space).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.structures.balance import balanced
from lrcompress.structures.factorized import FactorizedConv, FactorizedEmbedding, FactorizedLinear
from lrcompress.structures.large_svd import is_large, loss_by_blocks, truncated_by_blocks
from lrcompress.structures.solve import check_finite
from lrcompress.structures.structure import Factors, FitTask, Place, Structure, check_size


@dataclass(frozen=True)
class LowRank(Structure):
    """Two factors of rank `rank`; the first factor of a convolution holds its kernel."""

    rank: int
    type_name: ClassVar[str] = "low_rank"

    def check_sizes(self, spec: LayerSpec) -> None:
        largest = min(spec.out_features, spec.in_features)
        check_size(spec, "rank", self.rank, largest)

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        return {
            "left": (spec.groups, spec.out_features, self.rank),
            "right": (spec.groups, self.rank, spec.in_features),
        }

    def places(self, spec: LayerSpec) -> Mapping[str, Place]:
        embedded = spec.kind == "embedding"
        right = Place("codes.weight", transposed=True) if embedded else Place("down.weight")
        return {"left": Place("up.weight"), "right": right}

    def flops_per_row(self, spec: LayerSpec) -> int:
        product = 2 * self.weight_params(spec)
        own = 2 * self.rank * spec.out_features if spec.kind == "embedding" else product
        return own + product * len(spec.tied)

    def _fit(self, task: FitTask) -> Factors:
        whitening = task.whitening
        if self.takes_large(task.weight, whitening):
            return truncated_by_blocks(task.weight, self.rank)
        whitened = whitening.whiten(task.weight)  # (groups, m', n')
        check_finite(whitened)
        p, s, qt = torch.linalg.svd(whitened, full_matrices=False)
        left = whitening.output.left_inverse(p[..., : self.rank] * s[..., None, : self.rank])
        right = whitening.input.right_inverse(qt[..., : self.rank, :])
        del whitened, qt  # large for a vocabulary, and balancing makes copies
        return balanced(left, right)

    def takes_large(self, weight: Tensor, whitening: Whitening) -> bool:
        return is_large(weight) and whitening.is_plain

    def loss(
        self, factors: Factors, weight: Tensor, whitening: Whitening, spec: LayerSpec
    ) -> float:
        if self.takes_large(weight, whitening):
            return loss_by_blocks(weight, factors)
        return super().loss(factors, weight, whitening, spec)

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        return factors["left"] @ factors["right"]

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        left, right = factors["left"], factors["right"]
        built: nn.Module
        if spec.kind == "embedding":
            built = FactorizedEmbedding.like(layer, left[0], right[0])
        elif spec.kind in ("linear", "transposed_linear"):
            built = FactorizedLinear.like(layer, left[0], right[0], bias)
        else:
            built = FactorizedConv.like(layer, left, right, bias)
        return built.train(layer.training)
