"""The predicted losses of structures in number formats, from the curves of a profile."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from math import exp, log

from lrcompress.number_formats import Format, GridFormat
from lrcompress.planning.ranks import default_ranks
from lrcompress.profiling.profile import CurvePoint, LayerProfile
from lrcompress.profiling.spectrum import loss_curve
from lrcompress.structures import Dense, LowRank, Quantised, Structure, in_format

INPUTS = 2.0  # that low rank rounds, each about as costly as the dense layer's
SMALLEST_ADDED = 1e-6  # of the loss: what rounding adds at least, so that its logarithm exists


def losses_in_formats(
    layer: LayerProfile, metric: str, formats: Collection[str]
) -> Iterator[tuple[Structure, float]]:
    """Yield the structures in one of the formats with their losses.

    Low rank loses what it loses unrounded, and what the rounding adds. That part is interpolated
    between the ranks at which it was measured, log-linearly, and constant beyond them.
    """
    if metric != layer.curves_metric or not formats:
        return
    for curve in layer.curves:
        inner, own = in_format(curve[0].structure)
        if not own or ", ".join(map(str, own)) not in formats:
            continue
        if isinstance(inner, LowRank):
            losses = _rounded_low_rank(layer, metric, curve, own)
        else:
            losses = {point.structure: point.loss for point in curve}
        inputs = _of_inputs(layer, own)
        for structure, loss in losses.items():
            if not layer.is_corrected(metric):
                yield structure, loss
            elif inputs is None:
                yield structure, loss * layer.correction_of_loss(metric, loss)
            elif isinstance(inner, LowRank):
                corrected = loss * layer.correction_of_loss(metric, loss)
                yield structure, corrected + INPUTS * inputs * layer.factor
            else:  # measured in the whole network
                yield structure, loss * layer.factor


def _of_inputs(layer: LayerProfile, formats: tuple[Format, ...]) -> float | None:
    """Return the measured loss of the dense weight in formats that round inputs, else None."""
    if not any(isinstance(one, GridFormat) and one.activations for one in formats):
        return None
    dense = Quantised(Dense(), formats[:1])
    points = (point for curve in layer.curves for point in curve)
    return next((point.loss for point in points if point.structure == dense), 0.0)


def _rounded_low_rank(
    layer: LayerProfile, metric: str, curve: Sequence[CurvePoint], formats: tuple[Format, ...]
) -> dict[Structure, float]:
    unrounded = loss_curve(layer.spectra[metric]).tolist()
    known = []
    for point in curve:
        inner, _ = in_format(point.structure)
        assert isinstance(inner, LowRank)
        added = point.loss - unrounded[min(inner.rank, len(unrounded) - 1)]
        known.append((inner.rank, log(max(added, SMALLEST_ADDED * point.loss, 1e-300))))
    losses: dict[Structure, float] = {}
    for rank in default_ranks(layer.spec, 1):
        (r0, v0) = next((x for x in reversed(known) if x[0] <= rank), known[0])
        (r1, v1) = next((x for x in known if x[0] >= rank), known[-1])
        added = v0 if r1 <= r0 else v0 + (v1 - v0) * (rank - r0) / (r1 - r0)
        loss = unrounded[min(rank, len(unrounded) - 1)] + exp(added)
        losses[Quantised(LowRank(rank), formats)] = loss
    return losses
