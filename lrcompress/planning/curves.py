"""Loss against cost: what each layer may become, and what each choice costs."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from math import isfinite

from lrcompress.errors import PlanError
from lrcompress.layers import LayerSpec
from lrcompress.metrics import METRICS
from lrcompress.planning.budget import BudgetKind
from lrcompress.profiling.profile import LayerProfile
from lrcompress.profiling.spectrum import loss_curve
from lrcompress.structures import Dense, LowRank, Structure


@dataclass(frozen=True)
class Choice:
    """One structure in one layer's place. Counts are of the weight; the bias stays as it is."""

    structure: Structure
    loss: float  # predicted, in the metric's unit
    params: int
    flops_per_example: float  # a whole number, so that sums are exact
    bytes: int

    def cost(self, kind: BudgetKind) -> int:
        if kind == "params":
            return self.params
        return int(self.flops_per_example) if kind == "flops" else self.bytes


def layer_choices(
    layer: LayerProfile,
    metric: str,
    *,
    multiple_of: int = 1,
    min_rank: int = 1,
    bytes_per_param: int = 4,
) -> tuple[Choice, ...]:
    """Every low rank below break-even, then dense; ranks are multiples, at least `min_rank`.

    Raises:
        PlanError: the profile lacks the metric, or the layer's loss is not finite.
    """
    losses = _losses(layer, metric)
    spec = layer.spec
    smallest = -(-min_rank // multiple_of) * multiple_of
    low_ranks: list[tuple[Structure, float]] = [
        (LowRank(rank), losses[min(rank, len(losses) - 1)])
        for rank in range(smallest, spec.break_even_rank + 1, multiple_of)
    ]
    dense = Dense() if low_ranks else Dense(_reason_without_ranks(spec, smallest))
    return tuple(
        _choice(layer, structure, loss, bytes_per_param)
        for structure, loss in [*low_ranks, (dense, 0.0)]
    )


def choice_of(
    layer: LayerProfile, metric: str, structure: Structure, *, bytes_per_param: int = 4
) -> Choice:
    """What a given structure costs and loses in the layer's place, whoever chose it.

    Raises:
        PlanError: the structure cannot stand there, or would hold more than the dense weight.
    """
    structure.check(layer.spec)
    if isinstance(structure, Dense):
        return _choice(layer, structure, 0.0, bytes_per_param)
    if not isinstance(structure, LowRank):
        raise PlanError(
            f"{layer.name}: the profile holds no loss curve for {structure.type_name}; "
            "use low_rank or dense"
        )
    if structure.rank > layer.spec.break_even_rank:
        raise PlanError(
            f"{layer.name}: rank {structure.rank} holds no fewer parameters than the dense "
            f"weight; use a rank up to {layer.spec.break_even_rank}, or dense"
        )
    losses = _losses(layer, metric)
    loss = losses[min(structure.rank, len(losses) - 1)]
    return _choice(layer, structure, loss, bytes_per_param)


def _choice(layer: LayerProfile, structure: Structure, loss: float, bytes_per_param: int) -> Choice:
    params = structure.weight_params(layer.spec)
    flops = float(round(structure.flops_per_row(layer.spec) * layer.rows_per_example))
    return Choice(structure, loss, params, flops, params * bytes_per_param)


def _losses(layer: LayerProfile, metric: str) -> list[float]:
    """Loss at rank 0, 1, 2, ..., corrected by the layer's trials and never growing with rank."""
    spectrum = layer.spectra.get(metric)
    if spectrum is None:
        known = ", ".join(layer.spectra) or "no metric at all"
        raise PlanError(
            f"{layer.name}: the profile has no spectrum in the metric {metric!r}, only {known}; "
            "profile again with --data, or choose another --metric"
        )
    losses: list[float] = loss_curve(spectrum).tolist()
    if not isfinite(losses[0]):  # the sum over all directions, so it sees every one
        raise PlanError(
            f"{layer.name}: its loss in the metric {metric!r} is not finite; "
            "check the weight and the data, or --exclude the layer"
        )
    if not (METRICS[metric].needs_outputs and layer.trials):
        return losses
    corrected = [loss * layer.correction(rank) for rank, loss in enumerate(losses)]
    return list(accumulate(reversed(corrected), max))[::-1]


def _reason_without_ranks(spec: LayerSpec, smallest: int) -> str:
    return (
        f"the smallest allowed rank, {smallest}, is not below break-even "
        f"({spec.out_features} x {spec.in_features}: rank {spec.break_even_rank})"
    )
