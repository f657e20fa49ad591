"""The possible structures of each layer, with their costs and predicted losses."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from math import exp, isfinite, log

from lrcompress.errors import PlanError
from lrcompress.layers import LayerSpec
from lrcompress.number_formats import CastFormat, Format
from lrcompress.planning.budget import Costs
from lrcompress.planning.default_formats import STORED_IN
from lrcompress.planning.format_losses import losses_in_formats
from lrcompress.planning.format_prediction import predicted_loss
from lrcompress.planning.format_range import beyond, out_of_range
from lrcompress.planning.latency import Latencies
from lrcompress.planning.ranks import default_ranks
from lrcompress.profiling.profile import LayerProfile
from lrcompress.profiling.spectrum import loss_curve
from lrcompress.structures import (
    STRUCTURES,
    Dense,
    LowRank,
    Quantised,
    Structure,
    in_format,
)


@dataclass(frozen=True)
class Choice(Costs):
    """One possible structure of a layer. Costs cover only the weight; the bias is unchanged."""

    structure: Structure
    loss: float  # predicted, in the metric's unit


def layer_choices(
    layer: LayerProfile,
    metric: str,
    *,
    multiple_of: int | None = None,
    min_rank: int = 1,
    bytes_per_param: int = 4,
    wanted: Collection[str] = tuple(STRUCTURES),
    formats: Collection[str] = (),
    latencies: Latencies | None = None,
    refuse_slower: bool = False,
) -> tuple[Choice, ...]:
    """Return the `wanted` structures of all sizes below break-even with a known loss, then dense.

    `formats`: the number formats that the weights may have, as texts; empty: the stored one alone.
    Structures in the stored precision are left out if the formats do not name it and the layer has
    a choice in another one.

    Ranks are at least `min_rank` and multiples of `multiple_of` (None: `default_ranks`). With
    `latencies`, each choice has its latency. `refuse_slower` drops the structures that were
    measured to be slower than the dense layer.

    Raises:
        PlanError: the profile lacks the metric, or the layer's loss is not finite.
    """
    spec = layer.spec
    step = multiple_of or 1
    smallest = -(-min_rank // step) * step
    found: list[tuple[Structure, float]] = []
    if "low_rank" in wanted:
        losses = _losses(layer, metric)
        ranks: Iterable[int] = range(smallest, spec.break_even_rank + 1, step)
        if multiple_of is None:
            ranks = default_ranks(spec, smallest)
        found += [(LowRank(rank), losses[min(rank, len(losses) - 1)]) for rank in ranks]
    for name, curve in _curves(layer, metric):
        if name in wanted:
            found += [x for x in curve.items() if _allowed(x[0], layer, step, min_rank)]
    rounded = [
        x
        for x in losses_in_formats(layer, metric, formats)
        if not _is_as_wide(x[0], bytes_per_param)
        and in_format(x[0])[0].type_name in wanted
        and _allowed(x[0], layer, step, min_rank)
    ]
    stored = STORED_IN.get(bytes_per_param, ())
    plain = not formats or not rounded or any(text in formats for text in stored)
    found = [*(found if plain else ()), *rounded]
    if latencies is not None and refuse_slower:
        found = [x for x in found if not latencies.is_slower(x[0], spec)]
    if not plain and found:
        return tuple(_choice(layer, *x, bytes_per_param, latencies) for x in found)
    named = [text for text in formats if text not in stored]
    outside = [] if rounded else out_of_range(layer, metric, named)
    if outside:
        dense = Dense(f"its values are {beyond(outside)}")
    else:
        dense = Dense() if found else Dense(_reason_without_choice(spec, smallest, wanted, named))
    return tuple(
        _choice(layer, structure, loss, bytes_per_param, latencies)
        for structure, loss in [*found, (dense, 0.0)]
    )


def _is_as_wide(structure: Structure, bytes_per_param: int) -> bool:
    """Whether all its formats are floating-point types of the export's size or more."""
    return all(
        isinstance(one, CastFormat) and one.dtype.itemsize >= bytes_per_param
        for one in in_format(structure)[1]
    )


def choice_of(
    layer: LayerProfile,
    metric: str,
    structure: Structure,
    *,
    bytes_per_param: int = 4,
    latencies: Latencies | None = None,
) -> Choice:
    """Return a given structure as a choice for the layer, with its cost and predicted loss.

    If the profile has no curve for this size, the loss is that of low rank with as many
    parameters (`is_measured` tells which).

    Raises:
        PlanError: the structure cannot replace the layer, or has no fewer parameters than it.
    """
    largest = layer.spec.break_even_rank
    if isinstance(structure, LowRank) and structure.rank > largest:
        raise PlanError(
            f"{layer.name}: rank {structure.rank} holds no fewer parameters than the dense "
            f"weight; use a rank up to {largest}, or dense"
        )
    structure.check(layer.spec)
    params = structure.weight_params(layer.spec)
    if isinstance(structure, LowRank):
        loss = _loss_at_rank(layer, metric, structure.rank)
    elif isinstance(structure, Dense):
        loss = 0.0
    elif isinstance(structure, Quantised):
        loss = _loss_in_format(layer, metric, structure)
    elif params >= layer.spec.weight_params:
        raise PlanError(
            f"{layer.name}: {structure} holds no fewer parameters than the dense weight; "
            "use a smaller one, or dense"
        )
    else:
        known = (curve[structure] for _, curve in _curves(layer, metric) if structure in curve)
        measured = next(known, None)
        loss = low_rank_loss(layer, metric, params) if measured is None else measured
    return _choice(layer, structure, loss, bytes_per_param, latencies)


def is_measured(layer: LayerProfile, metric: str, structure: Structure) -> bool:
    """Whether the profile gives the structure's loss in this layer, without an estimate."""
    if isinstance(structure, Dense | LowRank):
        return True
    if isinstance(structure, Quantised):
        return structure in dict(losses_in_formats(layer, metric, (structure.format_text,)))
    return any(structure in curve for _, curve in _curves(layer, metric))


def low_rank_loss(layer: LayerProfile, metric: str, params: int) -> float:
    """Return the loss of low rank with at most `params` parameters.

    It is the loss of removing the layer if no rank is so small, and 0 from the dense size on.
    """
    if params >= layer.spec.weight_params:
        return 0.0
    rank = params // (layer.spec.groups * (layer.spec.out_features + layer.spec.in_features))
    return _loss_at_rank(layer, metric, rank)


def _choice(
    layer: LayerProfile,
    structure: Structure,
    loss: float,
    bytes_per_param: int,
    latencies: Latencies | None,
) -> Choice:
    spec = layer.spec
    params = structure.weight_params(spec)
    flops = float(round(structure.flops_per_row(spec) * layer.rows_per_example))
    time = flops
    if latencies is not None:
        time = latencies.time(structure, spec, layer.rows_per_example)
    return Choice(params, flops, structure.nbytes(spec, bytes_per_param), time, structure, loss)


def _loss_in_format(layer: LayerProfile, metric: str, structure: Quantised) -> float:
    """Return the loss of a structure in formats.

    Factors in several formats lose at most what they lose in the worst of them. Without a curve,
    the loss is that of the structure, and what the dense weight loses in the worst format.
    """
    texts = [str(format) for format in structure.formats]
    known = dict(losses_in_formats(layer, metric, {structure.format_text, *texts}))
    if structure in known:
        return known[structure]
    alone = [Quantised(structure.structure, (format,)) for format in structure.formats]
    if all(one in known for one in alone):
        return max(known[one] for one in alone)
    dense = [Quantised(Dense(), (format,)) for format in structure.formats]
    rounding = max(
        known[one] if one in known else _predicted_in_format(layer, metric, one.formats[0])
        for one in dense
    )
    inner = choice_of(layer, metric, structure.structure).loss
    return inner + rounding


def _predicted_in_format(layer: LayerProfile, metric: str, format: Format) -> float:
    loss = predicted_loss(layer, metric, format)
    return loss * layer.correction_of_loss(metric, loss) if layer.is_corrected(metric) else loss


def _loss_at_rank(layer: LayerProfile, metric: str, rank: int) -> float:
    losses = _losses(layer, metric)
    return losses[min(rank, len(losses) - 1)]


def _losses(layer: LayerProfile, metric: str) -> list[float]:
    """Return the losses at rank 0, 1, 2, ..., corrected by the layer's trials, non-increasing."""
    spectrum = layer.spectra.get(metric)
    if spectrum is None:
        known = ", ".join(layer.spectra) or "no metric at all"
        raise PlanError(
            f"{layer.name}: the profile has no spectrum in the metric {metric!r}, only {known}; "
            "profile again with --data, or choose another --metric"
        )
    losses: list[float] = loss_curve(spectrum).tolist()
    if not isfinite(losses[0]):  # the sum over all directions
        raise PlanError(
            f"{layer.name}: its loss in the metric {metric!r} is not finite; "
            "check the weight and the data, or --exclude the layer"
        )
    if not layer.is_corrected(metric):
        return losses
    corrected = [loss * layer.correction(rank) for rank, loss in enumerate(losses)]
    return list(accumulate(reversed(corrected), max))[::-1]


def _curves(layer: LayerProfile, metric: str) -> Iterator[tuple[str, dict[Structure, float]]]:
    """Yield each structure's name and the losses of all its sizes within the fitted curve.

    Between two fitted sizes, log(loss) is interpolated linearly in the parameters. Trials measure
    low rank, so a structure gets the correction of the rank that would lose as much.
    """
    if metric != layer.curves_metric:
        return
    for curve in layer.curves:
        if in_format(curve[0].structure)[1]:
            continue
        losses: dict[Structure, float] = {}
        for point, after in pairwise(curve):
            losses[point.structure] = point.loss
            low, high = (log(max(p.loss, 1e-300)) for p in (point, after))
            ends = [p.structure.weight_params(layer.spec) for p in (point, after)]
            for structure in point.structure.between(after.structure):
                part = (structure.weight_params(layer.spec) - ends[0]) / (ends[1] - ends[0])
                losses[structure] = exp(low + part * (high - low))
        losses[curve[-1].structure] = curve[-1].loss
        if layer.is_corrected(metric):
            losses = {s: x * layer.correction_of_loss(metric, x) for s, x in losses.items()}
        yield curve[0].structure.type_name, losses


def _allowed(structure: Structure, layer: LayerProfile, multiple_of: int, min_rank: int) -> bool:
    inner, formats = in_format(structure)
    rank = getattr(inner, "rank", None)
    if isinstance(rank, int) and (rank % multiple_of or rank < min_rank):
        return False
    if formats and isinstance(inner, Dense):
        return True
    return structure.weight_params(layer.spec) < layer.spec.weight_params


def _reason_without_choice(
    spec: LayerSpec, smallest: int, wanted: Collection[str], formats: Collection[str]
) -> str:
    formatless = f"; it takes none of the formats {', '.join(formats)}" if formats else ""
    if "low_rank" not in wanted:
        curves = f"no loss curve of {', '.join(wanted)} for a layer of this kind and shape"
        return curves + formatless
    return (
        f"the smallest allowed rank, {smallest}, is not below break-even "
        f"({spec.out_features} x {spec.in_features}: rank {spec.break_even_rank}){formatless}"
    )
