"""||dW D||_F^2 with D = diag((E|x|)^alpha): ASVD (Yuan et al. 2023, eq. 5; alpha = 1/2)."""

from __future__ import annotations

import torch

from lrcompress.metrics.metric import Metric, Whitening
from lrcompress.metrics.moments import LayerMoments
from lrcompress.metrics.root import RELATIVE_FLOOR, DiagonalRoot

ALPHA = 0.5


class Diagonal(Metric):
    name = "diagonal"

    def whitening(
        self, moments: LayerMoments, *, shrinkage: float = 0.0, centred: bool = False
    ) -> Whitening:
        scale = moments.input_abs_mean.to(torch.float64).pow(ALPHA)
        # Inactive channels keep a small weight, so that the inverse stays finite.
        scale = scale.clamp_min(RELATIVE_FLOOR * float(scale.max()))
        return Whitening(input=DiagonalRoot(scale))
