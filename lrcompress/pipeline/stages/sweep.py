"""The optional sweep stage: predicted and measured divergence at several budgets.

It writes no file, only facts for the report, and no other stage depends on it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from math import isfinite

from lrcompress.compression.sweep import SweepPoint, sweep
from lrcompress.distributed import main_only
from lrcompress.errors import BudgetError
from lrcompress.formats.stages_json import stage_key
from lrcompress.pipeline.stage import RunContext, Stage, StageOutput
from lrcompress.pipeline.stages.plan import PlanInputs
from lrcompress.planning.budget import Budget
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepFacts:
    points: tuple[SweepPoint, ...] = ()
    warnings: tuple[str, ...] = ()


STAGE = Stage("sweep", SweepFacts)


def is_swept(context: RunContext, inputs: PlanInputs) -> bool:
    """Return whether `run_sweep` has nothing left to do."""
    if not inputs.options.sweep or inputs.loaded.batches is None:
        return True
    return STAGE.is_finished(context, _key(inputs))


@main_only
def run_sweep(context: RunContext, inputs: PlanInputs) -> SweepFacts:
    """Measure the curve at the budgets in the options.

    A budget that cannot be met, or gives a non-finite output, is skipped with a warning.
    """
    options, judging = inputs.options, inputs.loaded.judging
    if not options.sweep:
        return SweepFacts()
    if judging is None:
        return _warned(SweepFacts(warnings=("no sweep: there is no data to measure it on",)))

    def work() -> StageOutput[SweepFacts]:
        plans, warnings = _plans(inputs)
        module = inputs.loaded.model.module
        points = sweep(module, plans, inputs.profile, judging, context.progress)
        broken = [p.budget for p in points if not isfinite(p.measured)]
        warnings += [f"no sweep at {budget}: the output is not finite" for budget in broken]
        finite = tuple(p for p in points if isfinite(p.measured))
        return StageOutput((), SweepFacts(finite, tuple(warnings)))

    return _warned(STAGE.run(context, _key(inputs), work, begins=False))


def _plans(inputs: PlanInputs) -> tuple[list[Plan], list[str]]:
    options = inputs.options
    scope = "total" if options.budget is None else options.budget.scope
    asked = replace(options.plan, formats=())  # which change no number of parameters
    plans, warnings = [], []
    for percent in sorted(set(options.sweep), reverse=True):
        budget = Budget("params", percent / 100, relative=True, scope=scope)
        try:
            plans.append(plan(inputs.profile, budget, asked))
        except BudgetError as error:
            warnings.append(f"no sweep at {budget}: {error}")
    return plans, warnings


def _key(inputs: PlanInputs) -> str:
    options = inputs.options
    depends_on = {
        "sweep": options.sweep,
        "scope": None if options.budget is None else options.budget.scope,
        "plan": options.plan,
        "data": inputs.loaded.data_fingerprint,
    }
    return stage_key(STAGE.name, inputs.profile_key, depends_on)


def _warned(facts: SweepFacts) -> SweepFacts:
    for warning in facts.warnings:
        log.warning("%s", warning)
    return facts
