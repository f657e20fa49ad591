"""The predicted loss of a dense weight in a number format that was not measured.

Rounding to nearest with the relative error E loses E times what the layer is worth, R, if errors
are spread like the weight. Feedback in the metric makes it a gain g < 1 of that: L = R E g. The
gain is known from a format that was measured. Fewer bits gain less, because feedback is lost where
values leave the range of the codes: L = R E g^k with an exponent k for the bits, fitted on the
vision transformer and the GPT in sample_models (2 bits from 4: .5 to 1.6 of the loss in four of
five layers).
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

import torch

from lrcompress.number_formats import CastFormat, Codes, Format, GridFormat
from lrcompress.profiling.profile import LayerProfile
from lrcompress.structures import Dense, Quantised

EXPONENTS = {8: 1.0, 4: 0.94, 2: 0.65}  # of the gain, by the bits
SAMPLE = 2**16  # normal values that are rounded to find a format's error
MOST_COLUMNS = 2**11  # of the sample; only a scale for a whole row depends on more
NEGLIGIBLE = 1e-12  # of the largest singular value: a direction that holds only rounding errors


def predicted_loss(layer: LayerProfile, metric: str, format: Format) -> float:
    """Return the loss, not corrected by trials, of the layer's dense weight in the format."""
    whole = layer.loss_of_removal(metric)
    error = _error_in(layer, format)
    if whole <= 0:
        return 0.0
    if isinstance(format, CastFormat):
        known = _measured(layer, metric, CastFormat)
        if known:
            reference = _nearest(known, format)
            return min(known[reference] * error / _error_in(layer, reference), whole)
        return min(error * whole, whole)
    assert isinstance(format, GridFormat)
    gain = _gain(layer, metric, format)
    if gain < 1:  # else there is no feedback to lose
        gain = gain ** EXPONENTS[format.bits]
    loss = error * whole * gain
    if format.activations:
        loss += error * whole  # of the inputs, which have no feedback
    return min(loss, whole)


def _gain(layer: LayerProfile, metric: str, format: GridFormat) -> float:
    """Return the gain of feedback at many bits, from the nearest format that was measured.

    Without one, it is the gain at which errors have the same size in all directions: the geometric
    mean of what the metric multiplies them by, over their arithmetic one.
    """
    whole = layer.loss_of_removal(metric)
    known = _measured(layer, metric, GridFormat)
    if known:
        reference = _nearest(known, format)
        assert isinstance(reference, GridFormat)
        gain = known[reference] / (_error_in(layer, reference) * whole)
        return gain ** (1 / EXPONENTS[reference.bits]) if 0 < gain < 1 else gain
    weighted, plain = layer.spectra[metric].double(), layer.spectra["plain"].double()
    size = min(len(weighted), len(plain))
    weighted, plain = weighted[:size], plain[:size]
    known_directions = (weighted > NEGLIGIBLE * weighted[0]) & (plain > NEGLIGIBLE * plain[0])
    ratios = 2 * (weighted[known_directions].log() - plain[known_directions].log())
    even = 0.5 * float(plain.square().sum() * ratios.mean().exp())
    return min(even / whole, 1.0)


def _measured(
    layer: LayerProfile, metric: str, kind: type[CastFormat | GridFormat]
) -> Mapping[Format, float]:
    """Return the measured losses of the dense weight in formats of a kind.

    Not those of formats that round inputs, whose losses are mostly the inputs'.
    """
    if metric != layer.curves_metric:
        return {}
    found: dict[Format, float] = {}
    for curve in layer.curves:
        made = curve[0].structure
        if not isinstance(made, Quantised) or not isinstance(made.structure, Dense):
            continue
        (format,) = made.formats
        if isinstance(format, kind) and not made.rounds_inputs:
            found[format] = curve[0].loss
    return found


def _nearest(known: Mapping[Format, float], format: Format) -> Format:
    return min(known, key=lambda one: abs(one.bits_per_weight - format.bits_per_weight))


def _error_in(layer: LayerProfile, format: Format) -> float:
    spec = layer.spec
    columns = spec.out_features if spec.kind == "embedding" else spec.in_features
    return relative_error(format, min(columns, MOST_COLUMNS))


@cache
def relative_error(format: Format, columns: int) -> float:
    """Return the mean squared error of rounding normal values to nearest, over their square."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(max(SAMPLE // columns, 1), columns, generator=generator)
    if isinstance(format, CastFormat):
        rounded = values.to(format.dtype).float()
    else:
        assert isinstance(format, GridFormat)
        grid = format.grid(values)
        rounded = Codes(grid, grid.nearest(values)).dequantised()
    return float((rounded - values).square().sum() / values.square().sum())
