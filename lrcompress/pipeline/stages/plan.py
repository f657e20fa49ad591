"""The plan stage."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from torch import nn

from lrcompress.checkpoint import CheckpointFolder, CheckpointStore, NoCheckpoints
from lrcompress.distributed import main_only
from lrcompress.errors import BudgetError, PlanError
from lrcompress.formats.files import write_text
from lrcompress.formats.plan_json import budgets_in, check_plan, plan_from_json, plan_to_json
from lrcompress.formats.stages_json import stage_key
from lrcompress.layers import describe
from lrcompress.metrics import METRICS
from lrcompress.network.batches import Batch
from lrcompress.pipeline.file_size import FileSize
from lrcompress.pipeline.options import RunOptions, export_within
from lrcompress.pipeline.plan_timer import DenseGraph, PlanTimer, plan_timer
from lrcompress.pipeline.stage import RunContext, Stage, StageOutput
from lrcompress.pipeline.stages.load import Loaded
from lrcompress.planning.budget import Budget
from lrcompress.planning.latency import table_digest
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.planning.request import plan_request
from lrcompress.profiling.profile import Profile
from lrcompress.progress import Progress
from lrcompress.scratch import scratch_folder
from lrcompress.selection.rounds import Tried, select

PLAN_NAME = "plan.json"
ROUNDS_OF_BOTH = 3  # of timing a plan and measuring its file

Read = TypeVar("Read")

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class PlanInputs:
    """What the plan of a run depends on."""

    loaded: Loaded
    profile: Profile
    options: RunOptions
    profile_key: str = ""  # of the profile's stage

    @property
    def is_selected(self) -> bool:
        """Whether plans are applied and measured before one is chosen.

        False without data, or if the user named a plan, a metric or an allocator.
        """
        options = self.options
        named = options.plan_file or options.plan.metric or options.plan.allocator
        comparable = METRICS[self.profile.metric].needs_outputs
        return bool(self.loaded.aside is not None and comparable and options.rounds and not named)

    def example(self) -> Batch:
        return self.loaded.example()

    @property
    def _timing(self) -> Mapping[str, object]:
        """How plans are timed, if they are."""
        if all(budget.kind != "latency" for budget in self.options.budgets):
            return {}
        return {"timing": [self.options.time_network, self.options.threads, self.options.provider]}

    @property
    def key_inputs(self) -> Mapping[str, object]:
        """The inputs of the stage's key. For a plan file, its decisions count, not its text."""
        options = self.options
        if options.plan_file is None:
            return {
                "budget": options.budget,
                **({"also": options.also} if options.also else {}),
                "options": options.plan,
                "precision": options.export.precision,
                "rounds": options.rounds,
                "data": self.loaded.data_fingerprint,
                **self._timing,
                "latencies": table_digest(options.plan.latency_table),
            }
        text = plan_to_json(read_plan(options.plan_file, self.profile))
        return {"plan": hashlib.sha256(text.encode()).hexdigest()}


@dataclass(frozen=True)
class PlanFacts:
    """The part of a Selection that the run's report shows."""

    tried: tuple[Tried, ...] = ()
    examples: int = 0


STAGE = Stage("plan", PlanFacts)


@dataclass(frozen=True, eq=False)
class Decision:
    """The plan of a run, how it was selected, and its stage's key."""

    plan: Plan
    facts: PlanFacts
    key: str


def needs_moments(context: RunContext, inputs: PlanInputs) -> bool:
    """Return whether a pending selection needs moments that were deleted."""
    if not inputs.is_selected or STAGE.is_finished(context, _key(inputs)):
        return False
    profile = inputs.profile
    return any(layer.name not in profile.moments for layer in profile.layers)


def _key(inputs: PlanInputs) -> str:
    return stage_key(STAGE.name, inputs.profile_key, inputs.key_inputs)


@main_only
def make_plan(context: RunContext, inputs: PlanInputs) -> Decision:
    """Write the plan of a run to its plan.json and return it.

    Raises:
        PlanError: plan.json in the run folder was edited, and no plan file was given.
    """
    folder = context.folder
    path = folder.path(PLAN_NAME)
    if inputs.options.plan_file is None and folder.is_edited(STAGE.name, PLAN_NAME):
        raise PlanError(
            f"{path}: has been edited since it was made; use it with --plan {path}, "
            "or delete it to plan again"
        )
    key = _key(inputs)

    def work() -> StageOutput[PlanFacts]:
        # Keep the old stages until there is a plan: the budget may be impossible
        store = CheckpointFolder(folder.work(key)) if inputs.is_selected else None
        made, facts = choose_plan(inputs, context.progress, store)
        folder.begin(STAGE.name)
        write_text(path, plan_to_json(made))
        return StageOutput([PLAN_NAME], facts)

    facts = STAGE.run(context, key, work, begins=False)
    result = read_plan(path, inputs.profile)
    for warning in result.warnings:
        log.warning("%s", warning)
    return Decision(result, facts, key)


def choose_plan(
    inputs: PlanInputs, progress: Progress, store: CheckpointStore | None = None
) -> tuple[Plan, PlanFacts]:
    """Return the requested plan: read from a file, or made for the budgets."""
    options, profile = inputs.options, inputs.profile
    if options.plan_file is not None:
        return read_plan(options.plan_file, profile), PlanFacts()
    assert options.budget is not None  # checked by RunOptions
    plan_request(profile, options.budgets, options.plan)  # refuses before any long work
    with scratch_folder() as scratch:
        export = export_within(options.export, options.budgets)
        dense = DenseGraph(inputs.loaded.model.module, inputs.example, export, scratch)
        asked = options.plan
        size = None
        timer = plan_timer(dense, profile, options, store or NoCheckpoints())
        if timer is not None:  # before any plan: without its time the layers count by their FLOPs
            asked = replace(asked, network_time=timer.time)
        if any(budget.kind == "bytes" for budget in options.budgets):
            size = FileSize(dense, profile)
            asked = size.options(options.budgets, asked, file_overhead(inputs, dense))
        if timer is not None:
            asked = timer.corrected(options.budgets, asked)
        made, facts = _chosen(inputs, asked, progress, store)
        return _kept(made, timer, size), facts


def _kept(made: Plan, timer: PlanTimer | None, size: FileSize | None) -> Plan:
    """Return the plan, or one made again, that keeps what it promises of time and bytes."""
    for _ in range(ROUNDS_OF_BOTH):
        timed = made if timer is None else timer.kept(made)
        fitted = timed if size is None else size.fitted(timed)
        if timer is None or fitted.structures == timed.structures:
            return fitted
        made = fitted
    raise BudgetError(
        f"budget {' and '.join(map(str, made.budgets))}: the plans that keep one of them miss "
        "another; raise one of them a little"
    )


def _chosen(
    inputs: PlanInputs, asked: PlanOptions, progress: Progress, store: CheckpointStore | None
) -> tuple[Plan, PlanFacts]:
    """Return the plan for the budgets, selected by measurements if the inputs allow it."""
    options, loaded, profile = inputs.options, inputs.loaded, inputs.profile
    if not inputs.is_selected or loaded.aside is None:
        return plan(profile, options.budgets, asked), PlanFacts()
    selection = select(
        loaded.model.module,
        profile,
        options.budgets,
        loaded.aside.judging,
        options=asked,
        rounds=options.rounds,
        progress=progress,
        store=store,
    )
    return selection.plan, PlanFacts(selection.tried, selection.examples)


def read_plan(path: Path, profile: Profile) -> Plan:
    """Read a plan; raises PlanError, naming the file, if it does not fit the model."""
    return _from_file(path, lambda text: plan_from_json(text, profile))


def planned_budgets(path: Path) -> tuple[Budget, ...]:
    """Return the budgets of a plan; PlanError, naming the file, if it is none."""
    return _from_file(path, budgets_in)


def check_plan_file(path: Path, module: nn.Module) -> None:
    """Raise PlanError for faults in a plan that can be found before profiling."""
    _from_file(path, lambda text: check_plan(text, describe(module, formats=True).layers))


def _from_file(path: Path, read: Callable[[str], Read]) -> Read:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise PlanError(f"{path}: cannot be read as text; give a plan.json") from error
    try:
        return read(text)
    except PlanError as error:
        raise PlanError(f"{path}: {error}") from error


def file_overhead(inputs: PlanInputs, dense: DenseGraph) -> int:
    """Return the bytes of the ONNX file beyond the weights that the plan counts.

    They are measured on an export of the dense model, since only the exporter knows the content of
    its graph.
    """
    everything = plan(inputs.profile, Budget("bytes", 1.0, relative=True), inputs.options.plan)
    return max(dense.report.bytes - everything.dense_bytes, 0)
