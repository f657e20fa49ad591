"""Compression: fit every layer's structure, replace the layer, and measure the result."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import torch
from torch import nn

from lrcompress.checkpoint import CheckpointStore, Entry, NoCheckpoints
from lrcompress.compression.fit import BIAS, fit_layer, layer_bias
from lrcompress.compression.measure import Measured, measure_both
from lrcompress.compression.refit import PreparedRefit, Refit, Target, prepare_refit
from lrcompress.compression.replace import Change, Replacement, install_
from lrcompress.compression.report import CompressedLayer, CompressReport, RefitTrial
from lrcompress.distributed import alike, failing_together, in_turns, is_main
from lrcompress.errors import FitError, PlanError
from lrcompress.fingerprint import model_fingerprint
from lrcompress.metrics import METRICS
from lrcompress.network.batches import Batches
from lrcompress.network.identity import identify, what_differs
from lrcompress.network.other_weights import round_others_
from lrcompress.network.unfused import runs_unfused
from lrcompress.planning.plan import Plan, PlannedLayer
from lrcompress.profiling.layer_work import layer_cost
from lrcompress.profiling.profile import LayerProfile, Profile, profile_readout
from lrcompress.progress import SILENT, Progress, Step
from lrcompress.structures import Dense, Factors


@dataclass(frozen=True)
class CompressOptions:
    refit: bool | None = None  # None: if affordable; only measured improvements are kept


DEFAULTS = CompressOptions()
NO_CHECKPOINTS = NoCheckpoints()
FACTORS = "factors"  # kind of the entries in the store
LOSS = "loss"  # key in an entry, next to the factors


@runs_unfused()
def compress_(
    module: nn.Module,
    plan: Plan,
    profile: Profile,
    *,
    batches: Batches | None = None,
    options: CompressOptions = DEFAULTS,
    progress: Progress = SILENT,
    store: CheckpointStore = NO_CHECKPOINTS,
    judging: Batches | None = None,
    confirming: Batches | None = None,
) -> CompressReport:
    """Replace the layers of `module` by the plan's structures, in place.

    With `batches` (those of the profile, or more), the output divergence is measured and a refit
    can be tried. `judging` are held-out examples that decide about the refit. `confirming` are
    held-out examples that decide nothing and show whether the result can be trusted. Layers in
    `store` are not fitted again. Several processes (see `distributed`) share the layers and get
    the same bits as one process; the first one fills `store`.

    Raises:
        PlanError: the plan is for another model, or names a layer that the profile lacks.
        FitError: a layer cannot be fitted; the message names it.
    """
    if plan.model_fingerprint != profile.model_fingerprint:
        raise PlanError("the plan is for another model than the profile; plan again")
    with failing_together():
        if model_fingerprint(module) != plan.model_fingerprint:
            raise PlanError("the plan is for another model than this one; profile and plan again")
        if profile.identity is not None:
            first = batches[0] if batches else None
            difference = what_differs(profile.identity, identify(module, None), module, first)
            if difference:
                raise PlanError(f"the profile is of another model ({difference}); profile again")
    readout = profile_readout(module, profile, batches) if batches else None
    trial = None
    if readout is not None and batches is not None and options.refit is not False:
        trial = prepare_refit(
            module, plan, profile, batches, readout, requested=options.refit, judging=judging
        )
    planned = [_Task(x, _profile_of(x, profile)) for x in plan.layers]
    tasks = [task for task in planned if not isinstance(task.planned.structure, Dense)]
    with progress.stage("compress", len(tasks)) as step:
        fitted = _fitted(module, tasks, plan, profile, store, step)
    targets: list[Target] = []
    replacements: list[Change] = [*round_others_(module, [*plan.structures], plan.others)]
    done: list[CompressedLayer] = []
    for task in tasks:
        made, row, factors = _install_layer_(module, task, fitted[task.layer.name])
        replacements += made
        targets += [Target(task.layer, task.planned.structure, made[0], factors)]
        done.append(row)
    measure = partial(measure_both, module, replacements, readout, batches, confirming, progress)
    outcome: RefitTrial | None = None
    unrefitted = Measured()
    if isinstance(trial, PreparedRefit):
        with suppress(FitError):  # output not finite: nothing to compare, but a refit may fix it
            unrefitted = measure()
        refit = Refit(module, targets, profile, plan.metric, trial.held_out, replacements)
        outcome = refit.run_(trial.train, progress)
    unchanged = outcome is not None and not outcome.accepted
    now = unrefitted if unchanged and unrefitted != Measured() else measure()
    if unchanged:
        unrefitted = Measured()
    comparable = METRICS[plan.loss_metric].needs_outputs
    return CompressReport(
        layers=tuple(done),
        metric=plan.metric,
        objective=profile.objective,
        predicted_divergence=plan.predicted_loss + plan.others_loss if comparable else None,
        calibration=now.calibration,
        held_out=now.held_out,
        calibration_unrefitted=unrefitted.calibration,
        held_out_unrefitted=unrefitted.held_out,
        refit=outcome,
        warnings=(trial,) if isinstance(trial, str) else (),
    )


@dataclass(frozen=True, eq=False)
class _Task:
    planned: PlannedLayer
    layer: LayerProfile


def _fitted(
    module: nn.Module,
    tasks: Sequence[_Task],
    plan: Plan,
    profile: Profile,
    store: CheckpointStore,
    step: Step,
) -> dict[str, Factors]:
    """Return the factors, bias and loss of each layer.

    A layer is fitted in one process, from its own weight and moments only, so that the bits do
    not depend on the number of processes.
    """

    def fit(task: _Task) -> tuple[Factors, bool]:
        name = task.layer.name
        entry = store.get(FACTORS, name)
        if entry is not None:
            return dict(entry.tensors), False
        original, moments = module.get_submodule(name), profile.moments.get(name)
        fitted = fit_layer(task.layer, original, task.planned.structure, plan.metric, moments)
        held = {**fitted.factors, LOSS: torch.tensor(fitted.loss, dtype=torch.float64)}
        return held if fitted.bias is None else {**held, BIAS: fitted.bias}, True

    found: dict[str, Factors] = {}
    order = alike(tasks, lambda task: layer_cost(task.layer.spec))
    for task, (held, is_new) in zip(order, in_turns(order, fit), strict=True):
        if is_new and is_main():
            store.put(FACTORS, task.layer.name, Entry(tensors=held))
        found[task.layer.name] = held
        step.advance()
    return found


def _install_layer_(
    module: nn.Module, task: _Task, held: Factors
) -> tuple[Sequence[Replacement], CompressedLayer, Factors]:
    planned, layer = task.planned, task.layer
    original = module.get_submodule(layer.name)
    factors = {name: value for name, value in held.items() if name not in (BIAS, LOSS)}
    bias, before = held.get(BIAS), layer_bias(original)
    replacements = install_(module, layer.spec, planned.structure, factors, bias)
    row = CompressedLayer(
        name=layer.name,
        structure=planned.structure,
        dense_params=planned.dense_params,
        params=planned.params,
        predicted_loss=planned.predicted_loss,
        fitted_loss=float(held[LOSS]),
        bias_moved=bias is not None and before is not None and not bias.to(before).equal(before),
    )
    return replacements, row, factors


def _profile_of(planned: PlannedLayer, profile: Profile) -> LayerProfile:
    try:
        return profile[planned.name]
    except KeyError:
        raise PlanError(
            f"{planned.name}: the plan names a layer that the profile lacks; remove it"
        ) from None
