"""The interface of a metric, which maps a layer's moments to a whitening of its weight."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lrcompress.metrics.moments import LayerMoments
from lrcompress.metrics.root import IdentityRoot, Root


@dataclass(frozen=True)
class Whitening:
    """Roots of the output and input moments: loss(dW) = 1/2 ||output dW input^T||_F^2."""

    output: Root = field(default_factory=IdentityRoot)
    input: Root = field(default_factory=IdentityRoot)

    @property
    def is_plain(self) -> bool:
        """Whether both roots are the identity: the loss is half the squared Frobenius norm."""
        return isinstance(self.output, IdentityRoot) and isinstance(self.input, IdentityRoot)

    def whiten(self, weight: Tensor) -> Tensor:
        """Return G^1/2 W C^1/2 in float64: (groups, m, n)."""
        return self.output.left(self.input.right(weight.to(torch.float64)))

    def loss(self, difference: Tensor) -> Tensor:
        """The loss of replacing W by W - difference, summed over groups; a scalar."""
        return 0.5 * self.whiten(difference).square().sum()


class Metric(ABC):
    """One row of the METRICS table."""

    name: str
    needs_inputs = True
    needs_outputs = False

    @abstractmethod
    def whitening(
        self, moments: LayerMoments, *, shrinkage: float = 0.0, centred: bool = False
    ) -> Whitening:
        """Return the whitening of a layer. `centred`: a bias compensates the mean error."""

    def error_mean(self, moments: LayerMoments, difference: Tensor) -> Tensor | None:
        """The mean of dW x, which a bias should compensate: (groups, m), or None without data."""
        return torch.einsum("gmn,gn->gm", difference, moments.input_mean.to(difference.dtype))
