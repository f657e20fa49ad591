"""1/2 ||G^1/2 dW C^1/2||_F^2, the second-order change of the network's output divergence.

With the Kronecker factors C, G of the layer's Gauss-Newton matrix (`Sensitivity`). One unit for
every layer, which is what makes ranks comparable across depth.

A tenth of the input factor is the plain second moment of the inputs: directions that calibration
moved but its few examples found insensitive are not thrown away (benchmarks/quality.py: better on
text of another kind than the calibration text).
"""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.metrics.metric import Metric, Whitening
from lrcompress.metrics.moments import LayerMoments, without_mean
from lrcompress.metrics.root import root_of

INPUT_SHARE = 0.1


class TwoSided(Metric):
    name = "two-sided"
    needs_inputs = True
    needs_outputs = True

    def whitening(
        self, moments: LayerMoments, *, shrinkage: float = 0.0, centred: bool = False
    ) -> Whitening:
        sensitivity = moments.sensitivity
        if sensitivity is None:
            raise DataError(
                "the moments hold no output sensitivity; profile again with --metric two-sided"
            )
        inputs = _blend(sensitivity.input, moments.input)
        if centred and sensitivity.input_mean is not None and sensitivity.bias is not None:
            mean, weight = sensitivity.input_mean, sensitivity.bias
            inputs = _blend(without_mean(sensitivity.input, mean, weight), moments.centred_input)
        return Whitening(
            output=root_of(sensitivity.output, shrinkage=shrinkage),
            input=root_of(inputs, shrinkage=shrinkage),
        )

    def error_mean(self, moments: LayerMoments, difference: Tensor) -> Tensor | None:
        if moments.sensitivity is None or moments.sensitivity.input_mean is None:
            return None
        mean = moments.sensitivity.input_mean.to(difference.dtype)
        return torch.einsum("gmn,gn->gm", difference, mean)


def _blend(sensitive: Tensor, inputs: Tensor) -> Tensor:
    """Both of the same form; the trace is that of the sensitive factor."""
    scale = _trace(sensitive) / _trace(inputs).clamp_min(1e-300)
    return (1 - INPUT_SHARE) * sensitive + INPUT_SHARE * scale * inputs


def _trace(moment: Tensor) -> Tensor:
    moment = moment.to(torch.float64)
    return (moment if moment.dim() == 2 else moment.diagonal(dim1=-2, dim2=-1)).sum().float()
