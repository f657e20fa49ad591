"""The contract of a structure: a hashable value that says what stands in a layer's place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import ClassVar

from torch import Tensor, nn

from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening

Factors = Mapping[str, Tensor]
"""Factors of one layer by name; shapes are each structure's own."""


class Structure(ABC):
    """A frozen dataclass whose fields are the sizes of the factors."""

    type_name: ClassVar[str]  # in plan.json and in the STRUCTURES table

    @abstractmethod
    def check(self, spec: LayerSpec) -> None:
        """Raise PlanError, naming the layer, if the structure cannot stand in its place."""

    @abstractmethod
    def weight_params(self, spec: LayerSpec) -> int:
        """Scalars in the factors, without the bias; a tied weight counts once."""

    @abstractmethod
    def flops_per_row(self, spec: LayerSpec) -> int:
        """Floating-point operations per row (2 per multiply-add), as LayerSpec.flops_per_row."""

    @abstractmethod
    def fit(self, weight: Tensor, whitening: Whitening) -> Factors:
        """Best factors for `weight` (groups, m, n) in the whitened Frobenius norm, in float64.

        Raises:
            FitError: the weight or its whitening is not finite.
        """

    @abstractmethod
    def dense(self, factors: Factors) -> Tensor:
        """The weight that the factors stand for: (groups, m, n)."""

    @abstractmethod
    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        """The module that takes the layer's place: its dtype, device, mode, need of gradients."""

    @abstractmethod
    def empty_factors(self, spec: LayerSpec) -> Factors:
        """Zero factors of the right shapes, to be filled from a file."""
