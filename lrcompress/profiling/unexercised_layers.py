"""Substitute moments and warnings for layers that the calibration data do not exercise.

A layer whose inputs or gradients are all zero seems to lose nothing on the data, however it is
compressed, so a plan would remove it. The missing moments are therefore taken from a metric that
needs less: inputs of unit variance instead of zero inputs, and the layer's own output instead of
the network's. The set of layers that may change is then the same in every metric.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lrcompress.layers import LayerSpec
from lrcompress.messages import listed
from lrcompress.metrics import LayerMoments, Sensitivity
from lrcompress.profiling.second_moment import trace

CONSTANT = 1e-9  # share of the inputs' energy; a smaller variance is rounding
ZERO_INPUTS = "its inputs are zero on all calibration data"
ONE_INPUT = "it gets the same input on all calibration data"
NO_EFFECT = "the measured output does not change with it on the calibration data"
DOUBTED = 0.1  # share of the compressible weights


def exercised(
    spec: LayerSpec, moments: LayerMoments, *, needs_sensitivity: bool
) -> tuple[LayerMoments, str]:
    """Return the moments with missing ones filled in, and why they were missing ("": none were)."""
    per_example = moments.rows / max(moments.examples, 1)
    energy = trace(moments.input)  # (g,)
    dead = energy <= 0
    reason = ZERO_INPUTS if bool(dead.all()) else ""
    if not reason and _is_constant(spec, moments, energy, per_example):
        reason = ONE_INPUT
    if bool(dead.any()):
        moments = replace(
            moments,
            input=_with_identity(moments.input, dead, per_example),
            input_abs_mean=torch.where(dead[:, None], 1.0, moments.input_abs_mean),
        )
    if not needs_sensitivity:
        return moments, reason
    found = moments.sensitivity
    if found is not None and bool((trace(found.input) > 0).any()):
        return moments, reason
    return replace(moments, sensitivity=_own_output(spec, moments, found)), reason or NO_EFFECT


def unexercised_warning(layers: Mapping[str, str]) -> tuple[str, ...]:
    """Return one warning line for each reason. layers: name -> reason."""
    return tuple(
        f"{listed([name for name, own in layers.items() if own == reason])}: {reason}, so that "
        "the loss of compressing it cannot be measured; give data that reach it, or --exclude it"
        for reason in dict.fromkeys(layers.values())
    )


def unexercised_doubt(layers: Mapping[str, str], specs: Sequence[LayerSpec]) -> tuple[str, ...]:
    """Return a clause if the data do not exercise a large share of the compressible weights."""
    whole = sum(spec.weight_params for spec in specs)
    unseen = sum(spec.weight_params for spec in specs if spec.name in layers)
    if not whole or unseen < DOUBTED * whole:
        return ()
    return (
        f"the calibration data do not show what {unseen / whole:.0%} of the compressible weights "
        f"do ({listed(list(layers))})",
    )


def _is_constant(
    spec: LayerSpec, moments: LayerMoments, energy: Tensor, per_example: float
) -> bool:
    if moments.rows < 2 or spec.kind == "embedding":
        return False
    around = energy - per_example * moments.input_mean.to(torch.float64).square().sum(-1)
    return bool((around <= CONSTANT * energy).all())


def _own_output(spec: LayerSpec, moments: LayerMoments, found: Sensitivity | None) -> Sensitivity:
    """Sensitivity of the layer's own output: its squared error, averaged over the features.

    It has the scale of the bias gradient, where there is one.
    """
    per_example = moments.rows / max(moments.examples, 1)
    scale = torch.ones(len(moments.input), dtype=torch.float64, device=moments.input.device)
    output = torch.eye(spec.out_features, dtype=moments.input.dtype, device=moments.input.device)
    output = (output / spec.out_features).expand(spec.groups, -1, -1).contiguous()
    if found is not None:
        output = found.output
        if found.bias is not None and bool((found.bias > 0).all()):
            scale = found.bias.to(torch.float64) / per_example
    input_scale = scale.reshape(-1, *(1,) * (moments.input.dim() - 1))
    border = spec.kind != "embedding"
    return Sensitivity(
        input=(moments.input * input_scale).to(moments.input.dtype),
        output=output,
        cross=(moments.input_mean * (scale * per_example)[:, None]).float() if border else None,
        bias=(scale * per_example).float() if border else None,
    )


def _with_identity(moment: Tensor, dead: Tensor, scale: float) -> Tensor:
    """Set the moment (g, n, n), or diagonal (g, n), to scale * I in the dead groups."""
    whole = torch.full(moment.shape[-1:], scale, dtype=moment.dtype, device=moment.device)
    if moment.dim() == 3:
        return torch.where(dead[:, None, None], torch.diag(whole), moment)
    return torch.where(dead[:, None], whole, moment)
