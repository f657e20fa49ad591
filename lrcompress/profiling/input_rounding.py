"""Trials of formats that round a layer's inputs: the network runs with one layer in the format.

A loss curve knows what rounding the weight costs. What rounding the inputs costs depends on the
range of each call's input, so it is measured on the network's output.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn

from lrcompress.errors import FitError, PlanError
from lrcompress.layers import replace_, share_hooks_, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.network.held_out_divergence import HeldOutDivergence
from lrcompress.number_formats import Format, GridFormat
from lrcompress.profiling.profile import CurvePoint, LayerProfile
from lrcompress.structures import Dense, Quantised, in_format
from lrcompress.structures.structure import FitTask


def with_rounded_inputs(
    module: nn.Module, layer: LayerProfile, whitening: Whitening, held_out: HeldOutDivergence
) -> LayerProfile:
    """Return the profile with the dense weight's loss in such a format as it was measured.

    Low rank's curves stay: a plan adds what its inputs cost (planning/format_losses.py). The module
    is restored.
    """
    rounding = [one for one in _formats(layer) if isinstance(one, GridFormat) and one.activations]
    curves = layer.curves
    for format in rounding:
        measured = _measured(module, layer, format, whitening, held_out)
        if measured is not None:
            curves = tuple(_raised(curve, format, measured) for curve in curves)
    return replace(layer, curves=curves)


def _formats(layer: LayerProfile) -> list[Format]:
    return [
        format
        for curve in layer.curves
        for inner, formats in [in_format(curve[0].structure)]
        if isinstance(inner, Dense)
        for format in formats
    ]


def _measured(
    module: nn.Module,
    layer: LayerProfile,
    format: Format,
    whitening: Whitening,
    held_out: HeldOutDivergence,
) -> float | None:
    """Return the divergence with the dense layer in the format; None if it cannot be replaced."""
    spec = layer.spec
    if spec.tied or not spec.name:
        return None
    original = module.get_submodule(spec.name)
    weight = weight_matrix(original).to(torch.float64)
    structure = Quantised(Dense(), (format,))
    bias = original.bias
    assert bias is None or isinstance(bias, torch.Tensor)
    try:
        structure.check(spec)
        task = FitTask(weight, whitening, spec, quick=True)
        factors = structure.round_factors({"weight": weight}, task)
        built = structure.build(original, spec, factors, None if bias is None else bias.detach())
    except (PlanError, FitError):
        return None
    replace_(module, spec.name, share_hooks_(original, built))
    try:
        return held_out.divergence(module)
    finally:
        # the name now refers to the replacement, which this replaces by the layer
        replace_(module, spec.name, original)


def _raised(
    curve: tuple[CurvePoint, ...], format: Format, measured: float
) -> tuple[CurvePoint, ...]:
    """Return the dense weight's curve in the format with its measured loss; others unchanged."""
    inner, formats = in_format(curve[0].structure)
    if formats != (format,) or not isinstance(inner, Dense):
        return curve
    return (replace(curve[0], loss=max(measured, curve[0].loss)),)
