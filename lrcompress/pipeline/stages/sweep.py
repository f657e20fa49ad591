"""The sweep, if asked for: predicted and measured divergence at several budgets.

It leaves no file, only facts for the report, and nothing else depends on it.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import isfinite

from lrcompress.compression.sweep import SweepPoint, sweep
from lrcompress.errors import BudgetError
from lrcompress.formats.stages_json import stage_key
from lrcompress.json_dataclasses import to_json
from lrcompress.pipeline.context import RunContext
from lrcompress.pipeline.stages.plan import PlanInputs
from lrcompress.planning.budget import Budget
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan

STAGE = "sweep"

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SweepFacts:
    points: tuple[SweepPoint, ...] = ()
    warnings: tuple[str, ...] = ()


def is_swept(job: RunContext, question: PlanInputs, upstream: str) -> bool:
    """Whether `swept` has nothing left to do. upstream: the key of the profile."""
    if not question.options.sweep or question.loaded.batches is None:
        return True
    return job.folder.finished(STAGE, _key(question, upstream)) is not None


def swept(job: RunContext, question: PlanInputs, upstream: str) -> SweepFacts:
    """The curve at the budgets that the options name. upstream: the key of the profile.

    A budget that cannot be met, or at which the network breaks down, is left out with a warning.
    """
    options, judging = question.options, question.loaded.judging
    if not options.sweep:
        return SweepFacts()
    if judging is None:
        return _told(SweepFacts(warnings=("no sweep: there is no data to measure it on",)))
    key = _key(question, upstream)
    known = job.folder.finished(STAGE, key)
    if known is not None:
        job.clock.reused(STAGE)
        return _told(job.folder.facts(STAGE, SweepFacts))
    with job.clock.stage(STAGE):
        plans, warnings = _plans(question)
        module = question.loaded.model.module
        points = sweep(module, plans, question.profile, judging, job.progress)
        broken = [p.budget for p in points if not isfinite(p.measured)]
        warnings += [f"no sweep at {budget}: the output is not finite" for budget in broken]
        facts = SweepFacts(tuple(p for p in points if isfinite(p.measured)), tuple(warnings))
    job.folder.finish(STAGE, key, (), to_json(facts))
    return _told(facts)


def _plans(question: PlanInputs) -> tuple[list[Plan], list[str]]:
    options = question.options
    scope = "total" if options.budget is None else options.budget.scope
    plans, warnings = [], []
    for percent in sorted(set(options.sweep), reverse=True):
        budget = Budget("params", percent / 100, relative=True, scope=scope)
        try:
            plans.append(plan(question.profile, budget, options.plan))
        except BudgetError as error:
            warnings.append(f"no sweep at {budget}: {error}")
    return plans, warnings


def _key(question: PlanInputs, upstream: str) -> str:
    options = question.options
    inputs = {
        "sweep": options.sweep,
        "scope": None if options.budget is None else options.budget.scope,
        "plan": options.plan,
        "data": question.loaded.data_fingerprint,
    }
    return stage_key(STAGE, upstream, inputs)


def _told(facts: SweepFacts) -> SweepFacts:
    for warning in facts.warnings:
        log.warning("%s", warning)
    return facts
