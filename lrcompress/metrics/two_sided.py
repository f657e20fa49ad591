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
        sensitive, inputs = sensitivity.input, moments.input
        # One scale with and without the mean, so that moving the bias only ever takes away
        scale = INPUT_SHARE * _ratio(sensitive, inputs)
        if centred and sensitivity.input_mean is not None and sensitivity.bias is not None:
            sensitive = without_mean(sensitive, sensitivity.input_mean, sensitivity.bias)
            inputs = moments.centred_input
        return Whitening(
            output=root_of(sensitivity.output, shrinkage=shrinkage),
            input=root_of(
                (1 - INPUT_SHARE) * sensitive + _scaled(inputs, scale, like=sensitive),
                shrinkage=shrinkage,
            ),
        )

    def error_mean(self, moments: LayerMoments, difference: Tensor) -> Tensor | None:
        if moments.sensitivity is None or moments.sensitivity.input_mean is None:
            return None
        mean = moments.sensitivity.input_mean.to(difference.dtype)
        return torch.einsum("gmn,gn->gm", difference, mean)


def _ratio(sensitive: Tensor, inputs: Tensor) -> Tensor:
    """tr(sensitive) / tr(inputs) of each group: (g,); 0 where there was no input."""
    over, under = _trace(sensitive), _trace(inputs)
    return torch.where(under > 0, over / under, 0.0)


def _trace(moment: Tensor) -> Tensor:
    moment = moment.to(torch.float64)
    return (moment if moment.dim() == 2 else moment.diagonal(dim1=-2, dim2=-1)).sum(-1)


def _scaled(moment: Tensor, scale: Tensor, *, like: Tensor) -> Tensor:
    """The moment times (g,), full where `like` is: one of one-hot tokens is held as its diagonal,
    while that of a head tied to their embedding need not be."""
    if like.dim() == 3:
        moment = torch.diag_embed(moment) if moment.dim() == 2 else moment
        return scale[:, None, None] * moment
    return scale[:, None] * moment
