"""Fits one layer's structure in the plan's metric."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from lrcompress.errors import FitError, LrcompressError
from lrcompress.layers import layer_kind, weight_matrix
from lrcompress.metrics import METRICS, LayerMoments, Whitening
from lrcompress.profiling.profile import LayerProfile
from lrcompress.structures import Factors, Structure

BIAS = "bias"  # key next to the structure's own factors


@dataclass(frozen=True, eq=False)
class FittedLayer:
    """Factors and bias in the layer's dtype, and the fit's loss before rounding to it."""

    factors: Factors
    bias: Tensor | None
    loss: float


def layer_whitening(layer: LayerProfile, metric: str, moments: LayerMoments | None) -> Whitening:
    """Return the whitening that the layer's spectrum was computed with.

    Raises:
        FitError: the profile has no moments of the layer.
    """
    if moments is None:
        if metric == "plain":
            return Whitening()
        raise FitError(f"{layer.name}: the profile holds no moments; profile again with --data")
    return METRICS[metric].whitening(moments, shrinkage=layer.shrinkage, centred=layer.centred)


def fit_layer(
    layer: LayerProfile,
    module: nn.Module,
    structure: Structure,
    metric: str,
    moments: LayerMoments | None,
) -> FittedLayer:
    """Fit the layer's factors in the metric, and shift its bias to compensate for the mean error.

    Raises:
        FitError: the weight or its moments are not finite; the message names the layer.
    """
    whitening = layer_whitening(layer, metric, moments)
    weight = weight_matrix(module)
    if not structure.takes_large(weight, whitening):
        weight = weight.to(torch.float64)
    try:
        factors = structure.fit(weight, whitening, layer.spec)
    except LrcompressError as cause:
        raise FitError(f"{layer.name}: {cause}") from cause
    loss = structure.loss(factors, weight, whitening, layer.spec)
    return replace(rounded_fit(layer, module, structure, metric, moments, factors), loss=loss)


def rounded_fit(
    layer: LayerProfile,
    module: nn.Module,
    structure: Structure,
    metric: str,
    moments: LayerMoments | None,
    factors: Factors,
) -> FittedLayer:
    """Round float64 factors to the layer's dtype, and shift the bias for the mean error.

    The loss is not computed (NaN).

    Raises:
        FitError: the factors overflow the layer's dtype; the message names the layer.
    """
    bias = layer_bias(module)
    if bias is not None and layer.centred and moments is not None:
        weight = weight_matrix(module).to(torch.float64)
        difference = weight - structure.dense(factors, layer.spec)
        shift = METRICS[metric].error_mean(moments, difference)  # (groups, m)
        if shift is not None:
            bias = (bias.to(torch.float64) + shift.flatten()).to(bias.dtype)
    dtype = weight_matrix(module).dtype
    rounded = structure.stored(factors, dtype)
    if not all(bool(torch.isfinite(value).all()) for value in rounded.values()):
        raise FitError(f"{layer.name}: its factors overflow {dtype}; exclude it or use float32")
    return FittedLayer(rounded, bias, float("nan"))


def layer_bias(module: nn.Module) -> Tensor | None:
    if layer_kind(module) == "embedding":
        return None
    bias = module.bias
    assert bias is None or isinstance(bias, Tensor)
    return None if bias is None else bias.detach()
