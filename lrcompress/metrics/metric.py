"""The contract of a metric: from a layer's moments to a whitening of its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrcompress.metrics.moments import LayerMoments
from lrcompress.metrics.root import IdentityRoot, Root


@dataclass(frozen=True)
class Whitening:
    """loss(dW) = 1/2 ||left dW right^T||_F^2, with the roots of the output and input moments."""

    output: Root = field(default_factory=IdentityRoot)
    input: Root = field(default_factory=IdentityRoot)

    def whiten(self, weight: Tensor) -> Tensor:
        """G^1/2 W C^1/2 in float64; (groups, m, n)."""
        return self.output.left(self.input.right(weight.to(torch.float64)))

    def loss(self, difference: Tensor) -> Tensor:
        """Loss of replacing W by W - difference, summed over groups; a scalar."""
        return 0.5 * self.whiten(difference).square().sum()


class Metric(ABC):
    """One row of the METRICS table."""

    name: str
    needs_inputs: bool
    needs_outputs: bool

    @abstractmethod
    def whitening(
        self, moments: LayerMoments, *, shrinkage: float = 0.0, centred: bool = False
    ) -> Whitening:
        """Whitening of a layer. `centred` when a bias takes up the mean of the error."""

    def error_mean(self, moments: LayerMoments, difference: Tensor) -> Tensor | None:
        """What a bias should take up of the error dW x: (groups, m), or None without data."""
        return torch.einsum("gmn,gn->gm", difference, moments.input_mean.to(difference.dtype))

    def input_moment(self, moments: LayerMoments, *, centred: bool) -> Tensor:
        return moments.centred_input if centred else moments.input
