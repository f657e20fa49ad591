"""The structure that leaves the layer unchanged."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from lrcompress.layers import LayerSpec
from lrcompress.structures.structure import Factors, FitTask, Place, Structure


@dataclass(frozen=True)
class Dense(Structure):
    """The unchanged layer, y = W x. `reason` says why, unless it was simply the best choice."""

    reason: str = ""
    type_name: ClassVar[str] = "dense"

    def check_sizes(self, spec: LayerSpec) -> None:
        pass

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        return {"weight": (spec.groups, spec.out_features, spec.in_features)}

    def places(self, spec: LayerSpec) -> Mapping[str, Place]:
        return {"weight": Place("weight", transposed=spec.kind == "embedding")}

    def flops_per_row(self, spec: LayerSpec) -> int:
        return spec.flops_per_row

    def _fit(self, task: FitTask) -> Factors:
        return {"weight": task.weight.to(torch.float64)}

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        return factors["weight"]

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        return layer
