"""The profile stage: measured here, reused from an earlier run, or copied from another folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from lrcompress.atomic import copy_file
from lrcompress.checkpoint import CheckpointFolder
from lrcompress.distributed import is_main, main_only, on_main
from lrcompress.errors import DataError, ModelError
from lrcompress.formats.moments import MomentsWriter, drop_moments
from lrcompress.formats.profile_json import load_profile, save_profile
from lrcompress.formats.stages_json import stage_key
from lrcompress.metrics import LayerMoments, MomentStore
from lrcompress.network.identity import ModelIdentity
from lrcompress.pipeline.foreign_files import PROFILE_FOLDER
from lrcompress.pipeline.run_folder import RunFolder, file_digest
from lrcompress.pipeline.stage import NoFacts, RunContext, Stage, StageOutput
from lrcompress.pipeline.stages.load import Loaded
from lrcompress.planning.plan import Plan
from lrcompress.profiling.moment_sink import MomentSink
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.structures import Dense

PROFILE_NAME = "profile.json"
PATTERNS = (PROFILE_NAME, "spectra.safetensors", "moments-*.safetensors")

STAGE = Stage("profile", NoFacts)

log = logging.getLogger(__name__)


class _NoSink:
    """A sink for processes that write no file: they read the moments from disk."""

    def add(self, name: str, input_group: str, moments: LayerMoments) -> None:
        pass

    def finish(self) -> MomentStore:
        return {}


def find_profile(folder: Path) -> Path:
    """Return the folder of the profile: `folder` itself, or the subfolder of a run folder.

    Raises:
        DataError: there is no profile.
    """
    for candidate in (folder, folder / PROFILE_FOLDER):
        if (candidate / PROFILE_NAME).is_file():
            return candidate
    raise DataError(f"{folder}: holds no {PROFILE_NAME}; make one with `lrcompress profile`")


def measure_profile(
    context: RunContext, where: str, loaded: Loaded, options: ProfileOptions, *, again: bool = False
) -> tuple[Profile, str]:
    """Measure the profile into the subfolder `where` of the run; return it and its stage's key.

    The profile is always read back from disk, so that resumed and uninterrupted runs see the same.
    again: measure even if it is finished, because its moments were deleted (--drop-moments).
    """
    options, folder = with_pooling(options, loaded), context.folder
    key = profile_key(loaded, options, where)
    target = folder.path(where)

    def work() -> StageOutput[NoFacts]:
        sink: MomentSink = MomentsWriter(target) if is_main() else _NoSink()
        module, batches = loaded.model.module, loaded.calibration
        store = CheckpointFolder(folder.work(key))
        found = profile(module, batches, options, context.progress, sink, store, loaded.judging)
        found = replace(found, identity=loaded.identity)
        for warning in found.warnings:
            log.warning("%s", warning)
        on_main(lambda: save_profile(found, target))
        return StageOutput(_names(folder.root, target), NoFacts())

    STAGE.run(context, key, work, again=again)
    if context.clock.worked(STAGE.name):
        folder.clean()
    return load_profile(target), key


def profile_key(loaded: Loaded, options: ProfileOptions, where: str) -> str:
    inputs = {
        "where": where,
        "model": loaded.identity.exact,
        "data": loaded.data_fingerprint,
        "options": options,
    }
    return stage_key(STAGE.name, "", inputs)


def copy_profile(
    context: RunContext, loaded: Loaded, source: Path, *, again: bool = False
) -> tuple[Profile, str]:
    """Copy an existing profile into the run; return it and its stage's key.

    again: copy even if a copy exists, because its moments were deleted (--drop-moments).

    Raises:
        DataError: the profile cannot be read, or lacks moments although `again` is set.
        ModelError: it is a profile of another model.
    """
    folder = context.folder
    source, target = find_profile(source), folder.path(PROFILE_FOLDER)
    given = check_profile(source, loaded)
    if again and not given.moments:
        raise DataError(
            f"{source}: its second moments were dropped, which fitting needs; profile the model "
            "again, without --profile"
        )
    names = [path.name for path in _files(source)]
    key = stage_key(STAGE.name, "", {"files": {name: file_digest(source / name) for name in names}})
    if source.resolve() == target.resolve():
        return given, key

    def work() -> StageOutput[NoFacts]:
        _replace(names, source, target)
        return StageOutput(_names(folder.root, target), NoFacts())

    STAGE.run(context, key, work, again=again)
    return load_profile(target), key


def lacks_moments(found: Profile, plan: Plan) -> bool:
    """Return whether fitting the plan's structures needs moments that were deleted."""
    changed = [x.name for x in plan.layers if not isinstance(x.structure, Dense)]
    return plan.metric != "plain" and any(name not in found.moments for name in changed)


def delete_moments(folder: RunFolder) -> Profile:
    """Delete the moments of a finished run's profile and return it; its stage stays finished."""
    target = folder.path(PROFILE_FOLDER)
    record = folder.record(STAGE.name)
    if record is None:
        log.warning("%s: was given with --profile, so its moments are kept", target)
        return load_profile(target)
    drop_moments(target)
    folder.finish(STAGE.name, record.key, _names(folder.root, target), record.facts)
    return load_profile(target)


def check_profile(source: Path, loaded: Loaded) -> Profile:
    """Read the profile in `source`; raise ModelError if it is of another model."""
    given = load_profile(find_profile(source))
    difference = loaded.differs(given.identity or ModelIdentity(given.model_fingerprint))
    if difference:
        raise ModelError(
            f"{source}: is the profile of another model, or of an earlier state of this one "
            f"({difference}); profile this one"
        )
    return given


def with_pooling(options: ProfileOptions, loaded: Loaded) -> ProfileOptions:
    """Replace the pooling "auto" by the one from the model's folder."""
    if options.pooling != "auto":
        return options
    return replace(options, pooling=loaded.model.pooling)


def _files(folder: Path) -> list[Path]:
    return sorted(path for pattern in PATTERNS for path in folder.glob(pattern))


@main_only
def _names(root: Path, target: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in _files(target)]


@main_only
def _replace(names: Sequence[str], source: Path, target: Path) -> None:
    """Replace the profile in `target`."""
    for stale in _files(target):
        stale.unlink()
    for name in names:
        copy_file(source / name, target / name)
