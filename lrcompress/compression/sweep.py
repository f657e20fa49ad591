"""Compares predicted and measured divergence at several budgets, to test the additive model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lrcompress.compression.fit import fit_layer
from lrcompress.compression.replace import Replacement, install_, show_originals_
from lrcompress.errors import PlanError
from lrcompress.network.batches import Batches
from lrcompress.network.held_out_divergence import held_out_divergence
from lrcompress.planning.plan import Plan
from lrcompress.profiling.profile import Profile, profile_readout
from lrcompress.progress import SILENT, Progress
from lrcompress.structures import Dense


@dataclass(frozen=True)
class SweepPoint:
    """The result of one plan. Divergences are per example, in the objective's unit."""

    budget: str
    params: int
    predicted: float
    measured: float


def sweep(
    module: nn.Module,
    plans: Sequence[Plan],
    profile: Profile,
    judging: Batches,
    progress: Progress = SILENT,
) -> tuple[SweepPoint, ...]:
    """Apply and measure each plan, without a refit, and restore the module.

    judging: examples to measure on, preferably none of the profile's.

    Raises:
        FitError: a layer cannot be fitted; the message names it.
        PlanError: the profile was made without data.
    """
    readout = profile_readout(module, profile, judging)
    if readout is None:
        raise PlanError("the profile was made without data, which a sweep needs; profile again")
    held_out = held_out_divergence(module, judging, readout)
    points = []
    with progress.stage("sweep", sum(len(plan.layers) for plan in plans)) as step:
        for plan in plans:
            done: list[Replacement] = []
            try:
                for planned in plan.layers:
                    if not isinstance(planned.structure, Dense):
                        done += _replaced_(module, profile, plan, planned.name)
                    step.advance()
                measured = held_out.divergence(module)
            finally:
                show_originals_(module, reversed(done))
            points.append(SweepPoint(str(plan.budget), plan.params, plan.predicted_loss, measured))
    return tuple(points)


def _replaced_(
    module: nn.Module, profile: Profile, plan: Plan, name: str
) -> tuple[Replacement, ...]:
    layer, structure = profile[name], plan[name].structure
    original = module.get_submodule(name)
    fitted = fit_layer(layer, original, structure, plan.metric, profile.moments.get(name))
    return install_(module, layer.spec, structure, fitted.factors, fitted.bias)
