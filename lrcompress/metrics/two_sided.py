"""1/2 ||G^1/2 dW C^1/2||_F^2, the second-order change of the network's output divergence.

The Gauss-Newton matrix of a layer under the Kronecker approximation of K-FAC (Martens and Grosse
2015, eq. 4): H = C (x) G with the sensitivities' moment G. One unit for every layer, which is what
makes ranks comparable across depth.
"""

from __future__ import annotations

from lrcompress.errors import DataError
from lrcompress.metrics.metric import Metric, Whitening
from lrcompress.metrics.moments import LayerMoments
from lrcompress.metrics.root import root_of


class TwoSided(Metric):
    name = "two-sided"
    needs_inputs = True
    needs_outputs = True

    def whitening(
        self, moments: LayerMoments, *, shrinkage: float = 0.0, centred: bool = False
    ) -> Whitening:
        if moments.output is None:
            raise DataError(
                "the moments hold no output sensitivities; profile again with --metric two-sided"
            )
        moment = self.input_moment(moments, centred=centred)
        return Whitening(
            output=root_of(moments.output, shrinkage=shrinkage),
            input=root_of(moment, shrinkage=shrinkage),
        )
