"""The plan: one structure for each layer, with the total cost and predicted loss."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

from lrcompress.layers import LayerSpec
from lrcompress.messages import listed
from lrcompress.planning.budget import NOTHING, Budget, Costs, amount_in_words
from lrcompress.planning.choices import Choice
from lrcompress.planning.latency import Latencies
from lrcompress.planning.latency_remarks import latency_remarks
from lrcompress.planning.limit import Limit, Spent
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.others import FP32, others_loss
from lrcompress.planning.request import PlanRequest
from lrcompress.structures import Structure, in_format

SCHEMA_VERSION = 1
ROUNDING = 1e-9  # of the losses: the digits of a written profile, and sums in another order
BUDGET_TOLERANCE = 0.005  # unused share of the budget above which a plan warns
MUCH_WORK, FEW_PARAMS = 0.85, 0.7  # kept shares of the FLOPs and of what the budget counts


@dataclass(frozen=True)
class PlannedLayer:
    """One layer of a plan. Counts cover only the weight; the bias is unchanged."""

    name: str
    structure: Structure
    dense_params: int
    params: int
    flops_per_example: float
    predicted_loss: float
    spec: LayerSpec


@dataclass(frozen=True)
class Plan:
    """A plan. Totals cover the whole model and count each shared parameter once."""

    model_fingerprint: str
    budget: Budget
    metric: str
    allocator: str
    options: PlanOptions
    layers: tuple[PlannedLayer, ...]  # every layer of the profile, in its order
    predicted_loss: float
    params: int
    dense_params: int
    flops_per_example: float
    dense_flops_per_example: float
    bytes: int
    dense_bytes: int
    cost: int  # in the budget's kind and scope
    limit: int  # largest cost that the budget allows
    also: tuple[Spent, ...] = ()  # the budgets besides the first one
    lower_bound: float | None = None  # proven: no plan of the listed choices loses less
    optimality_gap: float | None = None  # (predicted_loss - lower_bound) / lower_bound
    others_loss: float = 0.0  # measured, of the other weights in their format; not in the sums
    proven_for: str = ""  # digest of the bound and the allocation problem that it was proven for
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    def __getitem__(self, name: str) -> PlannedLayer:
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise KeyError(name)

    @property
    def loss_metric(self) -> str:
        """The metric whose loss curves predict the losses; `metric` is that of the fits."""
        return self.options.curves

    @property
    def structures(self) -> dict[str, Structure]:
        """Each layer's structure, by name."""
        return {layer.name: layer.structure for layer in self.layers}

    @property
    def others(self) -> str:
        """The format of the weights that no layer holds; see network/other_weights.py."""
        return self.options.others or FP32

    @property
    def spent(self) -> tuple[Spent, ...]:
        """All budgets with their costs, the first one first."""
        return (Spent(self.budget, self.cost, self.limit), *self.also)

    @property
    def budgets(self) -> tuple[Budget, ...]:
        return tuple(one.budget for one in self.spent)

    @property
    def budgets_in_words(self) -> str:
        return " and ".join(map(str, self.budgets))

    @property
    def within_budget(self) -> bool:
        """Whether the plan meets every budget."""
        return all(one.cost <= one.limit for one in self.spent)

    @property
    def latency_ratio(self) -> float | None:
        """The measured latency of the planned network over the dense one; None if not measured."""
        known = self.options.network_time
        return None if known is None else known.measured(self.structures)


def assemble(
    request: PlanRequest,
    choices: Sequence[Choice],
    latencies: Latencies | None,
    *,
    lower_bound: float | None = None,
    proven_for: str = "",
    warnings: Sequence[str] = (),
) -> Plan:
    """Build the plan from one choice for each of the profile's layers, in its order.

    If the plan exceeds the budget, the bound does not apply: it is dropped.
    """
    profile, options = request.profile, request.options
    assert options.metric is not None
    assert options.allocator is not None
    totals = request.fixed.plus(choices)
    spent = tuple(_spent(request, limit, choices, totals) for limit in request.limits)
    loss = float(sum(choice.loss for choice in choices))
    if any(one.cost > one.limit for one in spent):
        lower_bound = None
    # An excluded layer may have no loss in the metric
    known = [layer for layer in profile.layers if options.curves in layer.spectra]
    removals = [layer.loss_of_removal(options.curves) for layer in known]
    whole = sum(removal for removal in removals if isfinite(removal))
    if lower_bound is not None:
        slack = ROUNDING * (loss + whole)
        assert 0 <= lower_bound <= loss + slack, f"bound {lower_bound} above the loss {loss}"
    layers = tuple(
        PlannedLayer(
            name=layer.name,
            structure=choice.structure,
            dense_params=layer.spec.weight_params,
            params=choice.params,
            flops_per_example=choice.flops_per_example,
            predicted_loss=choice.loss,
            spec=layer.spec,
        )
        for layer, choice in zip(profile.layers, choices, strict=True)
    )
    return Plan(
        model_fingerprint=profile.model_fingerprint,
        budget=spent[0].budget,
        metric=options.metric,
        allocator=options.allocator,
        options=options,
        layers=layers,
        predicted_loss=loss,
        params=totals.params,
        dense_params=request.dense.params,
        flops_per_example=totals.flops_per_example,
        dense_flops_per_example=request.dense.flops_per_example,
        bytes=totals.bytes,
        dense_bytes=request.dense.bytes,
        cost=spent[0].cost,
        limit=spent[0].limit,
        also=spent[1:],
        lower_bound=lower_bound,
        others_loss=others_loss(profile, options),
        proven_for="" if lower_bound is None else proven_for,
        optimality_gap=_gap(loss, lower_bound, whole),
        warnings=(
            *warnings,
            *_slow_layers(request, choices, latencies),
            *_remarks(request, spent, loss),
            *_kept_work(request, choices, totals, spent[0].cost / request.limits[0].dense),
            *latency_remarks(request, choices, spent),
        ),
    )


def _gap(loss: float, bound: float | None, whole: float) -> float | None:
    """Return the gap relative to the bound, or to 1e-12 of the whole loss if that is larger."""
    if bound is None:
        return None
    unit = max(bound, 1e-12 * whole)
    return max(loss - bound, 0.0) / unit if unit > 0 else 0.0


def _slow_layers(
    request: PlanRequest, choices: Sequence[Choice], latencies: Latencies | None
) -> tuple[str, ...]:
    """Return a warning that names the layers measured to be slower than dense."""
    if latencies is None:
        return ()
    slow = [
        (layer.name, choice.structure)
        for layer, choice in zip(request.profile.layers, choices, strict=True)
        if latencies.is_slower(choice.structure, layer.spec)
    ]
    if not slow:
        return ()
    advice = "a flops budget leaves such structures out"
    if any(in_format(structure)[1] for _, structure in slow):
        advice = "a latency budget counts their time"
    return (
        f"{listed([name for name, _ in slow])}: smaller, but slower than dense at "
        f"{latencies.rows} rows on {latencies.provider}, by the latency table; {advice}",
    )


def _spent(request: PlanRequest, limit: Limit, choices: Sequence[Choice], totals: Costs) -> Spent:
    counted = totals
    if limit.budget.scope == "compressible":
        pairs = zip(request.profile.layers, choices, strict=True)
        counted = NOTHING.plus(c for layer, c in pairs if layer.name not in request.skipped)
    return Spent(limit.budget, counted.of(limit.budget.kind), limit.most)


def _remarks(request: PlanRequest, spent: Sequence[Spent], loss: float) -> tuple[str, ...]:
    """Return warnings if the plan exceeds a budget or leaves a part of all of them unused."""
    over = tuple(
        f"the plan needs {amount_in_words(one.budget.kind, one.cost, limit.dense)}, above its "
        f"budget of {amount_in_words(one.budget.kind, one.limit, limit.dense)} ({one.budget})"
        for one, limit in zip(spent, request.limits, strict=True)
        if one.cost > one.limit
    )
    if over:
        return over
    shown = " and ".join(str(one.budget) for one in spent)
    pairs = zip(spent, request.limits, strict=True)
    if all(one.limit > limit.dense for one, limit in pairs):
        return (f"budget {shown} is above the dense model: nothing has to change",)
    if loss > 0 and all(one.cost < (1 - BUDGET_TOLERANCE) * one.limit for one in spent):
        step = request.options.multiple_of or 1
        steps = f"; ranks go in steps of {step}" if step > 1 else ""
        used = " and ".join(f"{100 * one.cost / one.limit:.1f} %" for one in spent)
        return (f"the plan uses {used} of its budget {shown}{steps}",)
    return ()


def _kept_work(
    request: PlanRequest, choices: Sequence[Choice], kept: Costs, counted: float
) -> tuple[str, ...]:
    """Return a warning if a plan makes a network smaller but hardly faster.

    counted: share kept of what the budget counts. Convolutional networks have most weights in
    late layers and most FLOPs in early ones, where feature maps are large. Embeddings have
    weights but no FLOPs.
    """
    kind, dense = request.budget.kind, request.dense
    if {"flops", "latency"} & request.kinds or not request.profile.examples:
        return ()
    work = kept.flops_per_example / dense.flops_per_example if dense.flops_per_example else 0.0
    if work <= MUCH_WORK or counted > FEW_PARAMS:
        return ()
    advice = f"for speed use --budget flops={max(round(100 * counted), 1)}%"
    in_formats = any(in_format(choice.structure)[1] for choice in choices)
    if in_formats or request.options.others != FP32:
        # Formats saved the bytes; as small a share of the work would leave nothing of the network
        advice = "for speed add a budget of latency, such as --budget latency=60%"
    return (
        f"the plan keeps {100 * counted:.0f} % of the {kind} but {100 * work:.0f} % of the work: "
        f"smaller, hardly faster; {advice}",
    )
