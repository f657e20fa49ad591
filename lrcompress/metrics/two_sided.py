"""1/2 ||G^1/2 dW C^1/2||_F^2, the second-order change of the network's output divergence.

C and G are the Kronecker factors of the layer's Gauss-Newton matrix (`Sensitivity`). The unit is
the same for every layer, so ranks are comparable across depth.

A tenth of the input factor is the plain second moment of the inputs. It keeps directions that occur
in the inputs but that the few calibration examples found insensitive (benchmarks/quality.py: better
on text that differs in kind from the calibration text).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.metrics.metric import Metric, Whitening
from lrcompress.metrics.moments import LayerMoments, Sensitivity, without_mean
from lrcompress.metrics.root import root_of


class TwoSided(Metric):
    name = "two-sided"
    needs_outputs = True
    input_share = 0.1  # share of the inputs' plain second moment in the input factor, by trace
    output_share = 0.0  # share of the identity in the output factor, by trace

    def whitening(
        self, moments: LayerMoments, *, shrinkage: float = 0.0, centred: bool = False
    ) -> Whitening:
        sensitivity = moments.sensitivity
        if sensitivity is None:
            raise DataError(
                "the moments have no output sensitivity; profile again with --metric two-sided"
            )
        factor = _input_factor(sensitivity, moments, self.input_share)
        output = _toward_identity(sensitivity.output, self.output_share)
        return Whitening(
            output=root_of(output, shrinkage=shrinkage),
            input=root_of(factor.centred if centred else factor.input, shrinkage=shrinkage),
        )

    def error_mean(self, moments: LayerMoments, difference: Tensor) -> Tensor | None:
        if moments.sensitivity is None:
            return None
        factor = _input_factor(moments.sensitivity, moments, self.input_share)
        if factor.mean is None:
            return None
        return torch.einsum("gmn,gn->gm", difference, factor.mean.to(difference.dtype))


@dataclass(frozen=True, eq=False)
class _InputFactor:
    """The blended input factor, bordered by the constant input that a bias multiplies."""

    input: Tensor  # (g, n, n) or diagonal (g, n)
    mean: Tensor | None = None  # (g, n), what the bias compensates, per unit of dW
    constant: Tensor | None = None  # (g,)

    @property
    def centred(self) -> Tensor:
        """The Schur complement: the input factor once the bias is optimal."""
        if self.mean is None or self.constant is None:
            return self.input
        return without_mean(self.input, self.mean, self.constant)


def _input_factor(sensitivity: Sensitivity, moments: LayerMoments, share: float) -> _InputFactor:
    """Blend the sensitivity's input factor with the plain moment at equal traces, with borders.

    The plain part also determines the bias where the sensitivity does not: attention ignores the
    key's bias, so its `cross` and `bias` are rounding errors.
    """
    sensitive, plain, keep = sensitivity.input, moments.input, 1 - share
    over, under = _trace(sensitive), _trace(plain)
    scale = share * torch.where(under > 0, over / under, 0.0)  # (g,)
    if sensitive.dim() == 3 and plain.dim() == 2:  # one-hot tokens'; a tied head's is full
        plain = torch.diag_embed(plain)
    blended = keep * sensitive + scale.reshape(-1, *[1] * (plain.dim() - 1)) * plain
    if sensitivity.cross is None or sensitivity.bias is None:
        return _InputFactor(blended)
    scale = scale * (moments.rows / max(moments.examples, 1))
    cross = keep * sensitivity.cross + scale[:, None] * moments.input_mean
    constant = keep * sensitivity.bias + scale
    return _InputFactor(blended, cross / constant.clamp_min(1e-30).unsqueeze(-1), constant)


def _toward_identity(moment: Tensor, share: float) -> Tensor:
    """Return (1 - share) M + share (tr M / k) I for a full (g, k, k) or diagonal (g, k) moment."""
    if share == 0.0:
        return moment
    mean = share * _trace(moment).to(moment) / moment.shape[-1]
    if moment.dim() == 2:
        return (1 - share) * moment + mean[:, None]
    eye = torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    return (1 - share) * moment + mean[:, None, None] * eye


def _trace(moment: Tensor) -> Tensor:
    moment = moment.to(torch.float64)
    return (moment if moment.dim() == 2 else moment.diagonal(dim1=-2, dim2=-1)).sum(-1)
