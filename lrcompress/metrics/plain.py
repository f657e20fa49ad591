"""||dW||_F^2, which needs no data: the norm of truncated SVD and of BLAST's reference fit."""

from __future__ import annotations

from torch import Tensor

from lrcompress.metrics.metric import Metric, Whitening
from lrcompress.metrics.moments import LayerMoments


class Plain(Metric):
    name = "plain"
    needs_inputs = False

    def whitening(
        self, moments: LayerMoments, *, shrinkage: float = 0.0, centred: bool = False
    ) -> Whitening:
        return Whitening()

    def error_mean(self, moments: LayerMoments, difference: Tensor) -> Tensor | None:
        return None
