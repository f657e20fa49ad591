"""||dW C^1/2||_F^2 = E||dW x||^2: DRONE (Chen et al. 2021), SVD-LLM (Wang et al. 2024, eq. 3)."""

from __future__ import annotations

from lrcompress.metrics.metric import Metric, Whitening
from lrcompress.metrics.moments import LayerMoments
from lrcompress.metrics.root import root_of


class InputWeighted(Metric):
    name = "input-weighted"

    def whitening(
        self, moments: LayerMoments, *, shrinkage: float = 0.0, centred: bool = False
    ) -> Whitening:
        moment = moments.centred_input if centred else moments.input
        return Whitening(input=root_of(moment, shrinkage=shrinkage))
