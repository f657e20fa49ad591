"""The plan: one structure for each layer, with the total cost and predicted loss."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from lrcompress.layers import LayerSpec
from lrcompress.planning.account import Account
from lrcompress.planning.budget import Budget, amount_in_words
from lrcompress.planning.choices import Choice
from lrcompress.planning.kept_work import kept_work
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.totals import NOTHING
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Structure

SCHEMA_VERSION = 1
ROUNDING = 1e-9  # of the losses: the digits of a written profile, and sums in another order
BUDGET_TOLERANCE = 0.005  # unused share of the budget above which a plan warns


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
    lower_bound: float | None = None  # proven: no plan of the listed choices loses less
    optimality_gap: float | None = None  # (predicted_loss - lower_bound) / lower_bound
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
    def within_budget(self) -> bool:
        return self.cost <= self.limit


def assemble(
    profile: Profile,
    budget: Budget,
    options: PlanOptions,
    account: Account,
    *,
    skipped: Mapping[str, str],
    choices: Sequence[Choice],
    lower_bound: float | None = None,
    proven_for: str = "",
    warnings: tuple[str, ...] = (),
) -> Plan:
    """Build the plan from one choice for each of the profile's layers, in its order.

    `options` are resolved. If the plan exceeds the budget, the bound does not apply: it is dropped.
    """
    assert options.metric is not None
    assert options.allocator is not None
    totals = account.fixed.plus(choices)
    open_choices = [
        c for layer, c in zip(profile.layers, choices, strict=True)
        if budget.scope == "total" or layer.name not in skipped
    ]  # fmt: skip
    cost = totals.of(budget.kind)
    if budget.scope == "compressible":
        cost = NOTHING.plus(open_choices).of(budget.kind)
    loss = float(sum(choice.loss for choice in choices))
    if cost > account.limit:
        lower_bound = None
    whole = _loss_of_removal(profile, options.curves)
    if lower_bound is not None:
        slack = ROUNDING * (loss + whole)
        assert 0 <= lower_bound <= loss + slack, f"bound {lower_bound} above the loss {loss}"
    share = cost / account.counted_dense if account.counted_dense else 1.0
    work = kept_work(profile, budget, account.dense, totals, counted=share)
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
        budget=budget,
        metric=options.metric,
        allocator=options.allocator,
        options=options,
        layers=layers,
        predicted_loss=loss,
        params=totals.params,
        dense_params=account.dense.params,
        flops_per_example=totals.flops_per_example,
        dense_flops_per_example=account.dense.flops_per_example,
        bytes=totals.bytes,
        dense_bytes=account.dense.bytes,
        cost=cost,
        limit=account.limit,
        lower_bound=lower_bound,
        proven_for="" if lower_bound is None else proven_for,
        optimality_gap=_gap(loss, lower_bound, whole),
        warnings=(*warnings, *_remarks(budget, options, account, cost, loss), *work),
    )


def _loss_of_removal(profile: Profile, metric: str) -> float:
    """Return the removal loss of all layers whose loss is known; an excluded one may have none."""
    known = (x.loss_of_removal(metric) for x in profile.layers if metric in x.spectra)
    return sum(loss for loss in known if isfinite(loss))


def _gap(loss: float, bound: float | None, whole: float) -> float | None:
    """Return the gap relative to the bound, or to 1e-12 of the whole loss if that is larger."""
    if bound is None:
        return None
    unit = max(bound, 1e-12 * whole)
    return max(loss - bound, 0.0) / unit if unit > 0 else 0.0


def _remarks(
    budget: Budget, options: PlanOptions, account: Account, cost: int, loss: float
) -> tuple[str, ...]:
    limit, kind = account.limit, budget.kind
    if cost > limit:
        return (
            f"the plan needs {amount_in_words(kind, cost)}, above its budget of "
            f"{amount_in_words(kind, limit)} ({budget})",
        )
    if limit > account.counted_dense:
        return (f"budget {budget} is above the dense model: nothing has to change",)
    if loss > 0 and cost < (1 - BUDGET_TOLERANCE) * limit:
        step = (
            f"; ranks go in steps of {options.multiple_of}"
            if (options.multiple_of or 1) > 1
            else ""
        )
        return (f"the plan uses {100 * cost / limit:.1f} % of its budget {budget}{step}",)
    return ()
