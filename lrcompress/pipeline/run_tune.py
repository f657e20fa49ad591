"""Tuning of a finished run: replaces the weights, the ONNX file and the report in its folder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from lrcompress.conversion.convert import replay_
from lrcompress.distributed import failing_together
from lrcompress.errors import DataError, LrcompressError, TuneError
from lrcompress.export.export_options import ExportOptions
from lrcompress.fingerprint import fingerprint_batches
from lrcompress.formats.profile_json import load_profile
from lrcompress.formats.run_json import RECORD_NAME, RunRecord, read_record
from lrcompress.formats.stages_json import Ledger
from lrcompress.messages import label
from lrcompress.network.identity import ModelIdentity, identify, what_differs
from lrcompress.paths import expanded
from lrcompress.pipeline.axes import checked_axes
from lrcompress.pipeline.foreign_files import PROFILE_FOLDER
from lrcompress.pipeline.options import RunOptions, RunResult, TuneRunOptions
from lrcompress.pipeline.run_folder import RunFolder, open_run_folder, read_ledger
from lrcompress.pipeline.stage import Clock, RunContext
from lrcompress.pipeline.stages.compress import STAGE as COMPRESS
from lrcompress.pipeline.stages.compress import CompressFacts
from lrcompress.pipeline.stages.deliver import CompressedRun, deliver
from lrcompress.pipeline.stages.load import configuration, load_source_model
from lrcompress.pipeline.stages.plan import PLAN_NAME, PlanFacts, read_plan
from lrcompress.pipeline.stages.plan import STAGE as PLAN
from lrcompress.pipeline.stages.profile import STAGE as PROFILE
from lrcompress.pipeline.stages.sweep import STAGE as SWEEP
from lrcompress.pipeline.stages.sweep import SweepFacts
from lrcompress.pipeline.stages.tune import (
    STAGE,
    TuneInputs,
    check_dense,
    last_export,
    tune_key,
    tune_model,
)
from lrcompress.progress import SILENT, Progress
from lrcompress.reporting.html import require_plotly
from lrcompress.sources.data import kind_of_data, load_batches
from lrcompress.sources.factory import permit_factory
from lrcompress.sources.loaded_model import LoadedModel


def run_tune(options: TuneRunOptions, progress: Progress = SILENT) -> RunResult:
    """Tune the model of a run folder in place, then export and verify it again.

    If it is interrupted and called again, it resumes where it stopped, with bit-identical results.
    If it is called again after it finished, it changes nothing. With other options or data it
    continues from the current weights. The export options are those of the previous export.

    Raises:
        LrcompressError: the folder is not a finished run, or is in use; its dense model or the
            data cannot be read, or do not belong to it.
    """
    clock, root = Clock(), options.folder.output
    if options.folder.report:
        require_plotly()
    with clock.stage("load"), progress.stage("load", 1) as step, failing_together():
        ledger = _finished_ledger(root)
        record = read_record(root)
        assert options.source.data is not None  # checked by TuneRunOptions
        kind_of_data(options.source.data)
        dense = _dense(options, record)
        batches = load_batches(options.source.data, dense, options.source.data_options)
        identity = identify(dense.module, batches[0], configuration(dense))
        if not options.source.model:
            known = record.source_identity or ModelIdentity(record.source_fingerprint)
            check_dense(dense, identity, known, batches[0], root)
        step.advance()
    with open_run_folder(root, ledger, lambda _: "", force=False) as folder:
        context = RunContext(folder, progress, clock)
        profile = load_profile(root / PROFILE_FOLDER)
        exporting = last_export(folder)
        export = exporting.asked or ExportOptions()
        if options.axes is not None:
            export = replace(export, dynamic=options.axes.dynamic, fixed=options.axes.fixed)
        if options.to_onnx:
            checked_axes(dense.module, batches[0], export.axes, progress)
        inputs = TuneInputs(
            request=options.request,
            dense=lambda: dense,
            dense_identity=identity,
            batches=batches,
            data_fingerprint=fingerprint_batches(batches),
            profile=profile,
            plan=read_plan(root / PLAN_NAME, profile),
            trust_remote_code=options.source.trust_remote_code,
            differs=lambda known: what_differs(known, identity, dense.module, batches[0]),
        )
        tuned, key = tune_model(context, inputs, _upstream(folder, inputs), exporting)
        outcome = folder.facts(COMPRESS.name, CompressFacts)
        curve = SWEEP.recorded(folder) or SweepFacts()
        warnings = (*curve.warnings, *outcome.warnings)
        selection = PLAN.recorded(folder) or PlanFacts()
        made = CompressedRun(profile, inputs.plan, selection, curve, outcome, warnings, key, tuned)
        for earlier in (PROFILE, PLAN, COMPRESS):
            clock.reused(earlier.name)
        as_before = RunOptions(
            source=replace(options.source, model=ledger.model),
            folder=options.folder,
            plan_file=root / PLAN_NAME,
            export=export,
            provider=options.provider,
            pt2=exporting.pt2 and options.to_onnx,
            to_onnx=options.to_onnx,
        )
        report = deliver(context, as_before, batches[0], made)
    return RunResult(root, profile, inputs.plan, report)


def _finished_ledger(root: Path) -> Ledger:
    ledger = read_ledger(root)
    if ledger is None or COMPRESS.name not in ledger.stages:
        raise DataError(
            f"{root}: is not a run folder with a compressed model; make one with "
            "lrcompress compress"
        )
    return ledger


def _upstream(folder: RunFolder, inputs: TuneInputs) -> str:
    """Return the key that this tuning builds on.

    It is the key of the last tuning, or that tuning's own upstream if this one repeats it.
    """
    last, compress = folder.record(STAGE.name), folder.record(COMPRESS.name)
    assert compress is not None
    if last is None:
        return compress.key
    facts = STAGE.recorded(folder)
    assert facts is not None
    is_again = tune_key(inputs, facts.upstream) == last.key
    is_same = facts.teacher is None or not inputs.differs(facts.teacher)
    return facts.upstream if is_again and is_same else last.key


def _dense(options: TuneRunOptions, record: RunRecord) -> LoadedModel:
    """Return the teacher: the model in the options, else the one that the run was made from."""
    source, reference = options.source, record.reference
    if reference.kind == "factory":
        trusted = source.trust_factory or source.model
        permit_factory(reference.text, trusted, options.folder.output / RECORD_NAME)
    if source.model:
        other = load_source_model(source)
        replay_(other.module, record.conversions, strict=False)
        return other
    weights = reference.details.get("weights")
    if weights is not None and source.weights is None:
        raise TuneError(
            f"{options.folder.output}: was made from {reference.text} with weights from "
            f"{weights}; name them with --weights {weights}"
        )
    place = reference.place
    # `load_model` would treat a missing folder as a factory
    if reference.kind != "factory" and not expanded(place, TuneError).is_dir():
        raise TuneError(
            f"{options.folder.output}: its dense model is the teacher, but {label(place)} is not "
            "there; name it with --reference"
        )
    try:
        dense = load_source_model(replace(source, model=place))
        replay_(dense.module, record.conversions)
    except LrcompressError as cause:
        raise TuneError(
            f"{options.folder.output}: its dense model is the teacher, but {cause}; or name it "
            "with --reference"
        ) from cause
    return dense
