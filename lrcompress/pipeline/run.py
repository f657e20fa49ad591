"""The stages of a run: load → profile → plan → compress → tune → export → verify → report."""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

from lrcompress.conversion.conversion import converted_from
from lrcompress.conversion.convert import replay_
from lrcompress.distributed import failing_together, on_main
from lrcompress.errors import DataError, TuneError
from lrcompress.export.verify.result import BudgetFacts
from lrcompress.formats.profile_json import load_profile
from lrcompress.formats.stages_json import Ledger
from lrcompress.network.identity import identify, what_differs
from lrcompress.pipeline.axes import checked_axes, holds_compressed
from lrcompress.pipeline.foreign_files import PROFILE_FOLDER, refuse_foreign
from lrcompress.pipeline.options import (
    AUTO_POOLING,
    FolderOptions,
    Preview,
    ProfileResult,
    RunOptions,
    RunResult,
    SourceOptions,
)
from lrcompress.pipeline.run_folder import RunFolder, open_run_folder, read_ledger
from lrcompress.pipeline.stage import Clock, RunContext
from lrcompress.pipeline.stages.compress import compress_key, compress_model, is_compressed
from lrcompress.pipeline.stages.deliver import CompressedRun, deliver
from lrcompress.pipeline.stages.export import budget_facts
from lrcompress.pipeline.stages.load import Loaded, configuration, load_source_model, load_sources
from lrcompress.pipeline.stages.plan import (
    PLAN_NAME,
    Decision,
    PlanInputs,
    check_plan_file,
    choose_plan,
    make_plan,
    needs_moments,
    planned_budgets,
    read_plan,
)
from lrcompress.pipeline.stages.profile import (
    PROFILE_NAME,
    STAGE,
    check_profile,
    copy_profile,
    lacks_moments,
    measure_profile,
    profile_key,
    with_pooling,
)
from lrcompress.pipeline.stages.report import base_report, with_recorded, write_report
from lrcompress.pipeline.stages.sweep import is_swept, run_sweep
from lrcompress.pipeline.stages.tune import STAGE as TUNE
from lrcompress.pipeline.stages.tune import TuneInputs, is_tuned, tune_model
from lrcompress.planning.budget import Budget
from lrcompress.planning.plan import Plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.progress import SILENT, Progress
from lrcompress.reporting.html import require_plotly
from lrcompress.reporting.report import Report
from lrcompress.sources.loaded_model import LoadedModel


def run(options: RunOptions, progress: Progress = SILENT) -> RunResult:
    """Compress a model into a smaller, verified ONNX file in a run folder.

    If it is interrupted and called again with the same options, it resumes where it stopped, and
    the files are bit-identical to those of an uninterrupted run. Several processes (see
    `distributed`) share the profiling and the compression. The first process does everything else,
    and only it writes.

    Raises:
        LrcompressError: an input cannot be read, the budget cannot be met, or the folder is
            foreign, in use or cannot be written. A failed check is reported in the result instead.
    """
    where, source = options.folder, options.source
    clock = Clock()
    loaded = _loaded(source, where, clock, progress)
    batch = loaded.example()  # before any long work: it may fail without data
    _check_plan(options, loaded)
    if options.to_onnx and not holds_compressed(where.output, loaded.identity.weights):
        checked_axes(loaded.model.module, batch, options.export.axes, progress)
    with _opened(where, source, loaded) as folder:
        context = RunContext(folder, progress, clock)
        inputs = _profiled(context, loaded, options)
        if needs_moments(context, inputs):
            inputs = _profiled(context, loaded, options, again=True)
        decision = make_plan(context, inputs)
        if lacks_moments(inputs.profile, decision.plan) and not _fitted(context, inputs, decision):
            inputs = _profiled(context, loaded, options, again=True)
            decision = make_plan(context, inputs)
        found, plan = inputs.profile, decision.plan
        curve = run_sweep(context, inputs)
        tuning = _tune_inputs(inputs, plan)
        later = _rewriter(context, inputs, tuning, decision.key)
        outcome, key = compress_model(context, inputs, plan, decision.key, rewritten_by=later)
        warnings = (*loaded.model.warnings, *curve.warnings, *outcome.warnings)
        del loaded, inputs  # frees the dense weights; the next stages read the written model
        tuned = None
        if tuning is not None:
            tuned, key = tune_model(context, tuning, key)
        made = CompressedRun(found, plan, decision.facts, curve, outcome, warnings, key, tuned)
        report = deliver(context, options, batch, made)
        if options.drop_moments:
            found = load_profile(folder.path(PROFILE_FOLDER))
    return RunResult(folder.root, found, plan, report)


def _fitted(context: RunContext, inputs: PlanInputs, decision: Decision) -> bool:
    """Return whether no layer needs fitting."""
    later = _rewriter(context, inputs, _tune_inputs(inputs, decision.plan), decision.key)
    swept_already = is_swept(context, inputs)
    return is_compressed(context, inputs, decision.key, rewritten_by=later) and swept_already


def _rewriter(
    context: RunContext, inputs: PlanInputs, tuning: TuneInputs | None, key: str
) -> str | None:
    """Return the name of the tune stage if it is finished, else None. key: the key of the plan."""
    return TUNE.name if is_tuned(context, tuning, compress_key(inputs, key)) else None


def _tune_inputs(inputs: PlanInputs, plan: Plan) -> TuneInputs | None:
    loaded, options = inputs.loaded, inputs.options
    if options.tune is None:
        return None
    assert loaded.batches is not None  # checked by RunOptions
    source, identity, first = options.source, loaded.identity, loaded.first
    conversions = converted_from(loaded.model.module).conversions

    def dense() -> LoadedModel:
        """Load the dense model again: the first instance was compressed in place."""
        again = load_source_model(source)
        replay_(again.module, conversions)
        found = identify(again.module, None, configuration(again))
        difference = what_differs(identity, found, again.module, first)
        if difference:
            raise TuneError(
                f"{source.model}: has changed since the run began ({difference}); put it back and "
                "rerun to resume, or start again in another output folder"
            )
        return again

    return TuneInputs(
        request=options.tune,
        dense=dense,
        dense_identity=identity,
        batches=loaded.batches,
        data_fingerprint=loaded.data_fingerprint,
        profile=inputs.profile,
        plan=plan,
        trust_remote_code=source.trust_remote_code,
    )


def run_profile(
    source: SourceOptions,
    where: FolderOptions,
    options: ProfileOptions = AUTO_POOLING,
    progress: Progress = SILENT,
) -> ProfileResult:
    """Profile a model into a separate folder.

    Raises:
        LrcompressError: as `run`.
    """
    clock = Clock()
    loaded = _loaded(source, where, clock, progress)
    with _opened(where, source, loaded) as folder:
        found, _ = measure_profile(RunContext(folder, progress, clock), ".", loaded, options)
        folder.clean()
        folder.remove_replaced()

        def reported() -> Report:
            report = base_report(loaded.model.reference.text, found, None, where, clock)
            report = replace(report, warnings=(*loaded.model.warnings, *found.warnings))
            report = with_recorded(report, folder.root)
            write_report(report, where)
            return report

        return ProfileResult(folder.root, found, on_main(reported))


def preview(options: RunOptions, progress: Progress = SILENT) -> Preview:
    """Return the plan that `run` would use. Nothing is written; a finished profile is reused.

    Raises:
        LrcompressError: as `run`.
    """
    loaded = load_sources(options.source)
    _check_plan(options, loaded)
    axes = _axes_if_known(loaded, options, progress) if options.to_onnx else ()
    found = _known_profile(options, loaded)
    if found is None:
        found = profile(
            loaded.model.module,
            loaded.calibration,
            with_pooling(options.profile, loaded),
            progress,
            judging=loaded.judging,
        )
    plan, _ = on_main(lambda: choose_plan(PlanInputs(loaded, found, options), progress))
    return Preview(found, plan, axes)


def _axes_if_known(loaded: Loaded, options: RunOptions, progress: Progress) -> tuple[str, ...]:
    """Return the axes; () if the network's inputs are unknown, since a plan does not need them."""
    try:
        example = loaded.example()
    except DataError:
        return ()
    return checked_axes(loaded.model.module, example, options.export.axes, progress)


def promised_budget(onnx: Path) -> BudgetFacts:
    """Return the budget of the run folder that contains the ONNX file; empty without one."""
    root = onnx.parent
    plan, measured_in = root / PLAN_NAME, root / PROFILE_FOLDER
    if not plan.is_file() or not (measured_in / PROFILE_NAME).is_file():
        return BudgetFacts()
    return budget_facts(read_plan(plan, load_profile(measured_in)))


def budgets_of_run(root: Path) -> tuple[Budget, ...]:
    """Return the budgets of a run folder; none if it is not one."""
    path = root / PLAN_NAME
    return planned_budgets(path) if path.is_file() else ()


def _loaded(
    source: SourceOptions, where: FolderOptions, clock: Clock, progress: Progress
) -> Loaded:
    """Load the sources, after the quick checks that can fail."""
    on_main(lambda: refuse_foreign(where.output, force=where.force))
    if where.report:
        require_plotly()
    with clock.stage("load"), progress.stage("load", 1) as step:
        with failing_together():
            loaded = load_sources(source)
        step.advance()
    return loaded


def _check_plan(options: RunOptions, loaded: Loaded) -> None:
    """Raise PlanError for a plan that cannot fit the model, before a long profile."""
    if options.plan_file is not None:
        check_plan_file(options.plan_file, loaded.model.module)


def _profiled(
    context: RunContext, loaded: Loaded, options: RunOptions, *, again: bool = False
) -> PlanInputs:
    """Return the inputs of the plan, with a measured or a given profile."""
    given = options.profile_folder
    if given is None:
        found, key = measure_profile(context, PROFILE_FOLDER, loaded, options.profile, again=again)
    else:
        found, key = copy_profile(context, loaded, given, again=again)
    return PlanInputs(loaded, found, options, key)


def _opened(
    where: FolderOptions, source: SourceOptions, loaded: Loaded
) -> AbstractContextManager[RunFolder]:
    return open_run_folder(
        where.output,
        Ledger(source.model, loaded.identity.weights, loaded.identity),
        loaded.differs,
        force=where.force,
    )


def _known_profile(options: RunOptions, loaded: Loaded) -> Profile | None:
    """Return the given profile, or one finished in the run folder under the same key, else None."""
    if options.profile_folder is not None:
        return check_profile(options.profile_folder, loaded)
    root = options.folder.output
    key = profile_key(loaded, with_pooling(options.profile, loaded), PROFILE_FOLDER)
    ledger = read_ledger(root)
    record = None if ledger is None else ledger.stages.get(STAGE.name)
    if record is None or record.key != key:
        return None
    found = load_profile(root / PROFILE_FOLDER)
    return None if loaded.differs(found.identity) else found
