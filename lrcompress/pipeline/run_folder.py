"""The run folder: its lock, and the ledger of its finished stages."""

from __future__ import annotations

import hashlib
import logging
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from lrcompress.atomic import remove_temporaries
from lrcompress.distributed import main_only, on_main
from lrcompress.errors import DataError, LrcompressError
from lrcompress.formats.files import write_text
from lrcompress.formats.stages_json import Ledger, StageRecord
from lrcompress.json_dataclasses import from_json, to_json
from lrcompress.network.identity import ModelIdentity
from lrcompress.pipeline.foreign_files import (
    FOLDERS,
    LEDGER_NAME,
    WORK_NAME,
    refuse_foreign,
    refuse_links,
)
from lrcompress.pipeline.lock import locked

WORK_OF_STAGE = re.compile(r"[0-9a-f]{16}")

Facts = TypeVar("Facts")

log = logging.getLogger(__name__)


class RunFolder:
    """A locked folder with its ledger, made by `open_run_folder`.

    With several processes, only the first reads and writes the ledger and the lock. The others wait
    for it and receive its results.
    """

    def __init__(self, root: Path, ledger: Ledger) -> None:
        self.root = root
        self._ledger = ledger

    def path(self, name: str) -> Path:
        return self.root / name

    def work(self, key: str) -> Path:
        """Return the checkpoint folder of the stage with that key; delete those of other keys."""
        own = self.root / WORK_NAME / key[:16]
        on_main(lambda: _only(own))
        return own

    def record(self, stage: str) -> StageRecord | None:
        return self._ledger.stages.get(stage)

    def facts(self, stage: str, kind: type[Facts]) -> Facts:
        """Return the facts of a recorded stage from the ledger.

        Raises:
            DataError: they are malformed after an edit; the message names file and field.
        """
        record = self._ledger.stages[stage]
        where = f"{self.root / LEDGER_NAME}: stages.{stage}.facts"
        return from_json(kind, record.facts, where, DataError)

    @main_only
    def finished(self, stage: str, key: str, rewritten_by: str | None = None) -> bool:
        """Return whether the key and the files of a stage match the ledger.

        rewritten_by: a later stage, whose digests count for the files that both wrote.
        """
        record = self.record(stage)
        if record is None or record.key != key:
            return False
        later = None if rewritten_by is None else self.record(rewritten_by)
        files = {**record.files, **(later.files if later is not None else {})}
        changed = [name for name, digest in files.items() if not self._is(name, digest)]
        if changed:
            log.warning("%s: missing or changed; made again", self.path(changed[0]))
        return not changed

    def is_edited(self, stage: str, name: str) -> bool:
        """Return whether a stage's file exists and differs from what the stage wrote."""
        record = self.record(stage)
        digest = record.files.get(name) if record is not None else None
        return digest is not None and self.path(name).is_file() and not self._is(name, digest)

    @main_only
    def begin(self, stage: str) -> None:
        """Forget the stage and the stages after it, before their files change."""
        self.save(self._ledger.before(stage))

    @main_only
    def finish(
        self,
        stage: str,
        key: str,
        files: Sequence[str],
        facts: object,
        *,
        forget: str | None = None,
    ) -> None:
        """Record a finished stage.

        forget: a later stage, made from files that this one replaced. It and the stages after it
            are forgotten in the same write.
        """
        digests = {name: file_digest(self.path(name)) for name in files}
        ledger = self._ledger if forget is None else self._ledger.before(forget)
        self.save(ledger.with_stage(stage, StageRecord(key, digests, to_json(facts))))

    def save(self, ledger: Ledger) -> None:
        write_text(self.root / LEDGER_NAME, ledger.to_json())
        self._ledger = ledger

    @main_only
    def clean(self) -> None:
        """Remove the checkpoints."""
        _remove_work(self.root / WORK_NAME)

    @main_only
    def remove_replaced(self) -> None:
        """Remove the files of forgotten stages that no stage wrote again, if they are unchanged.

        Call it at the end of a run, when the new files exist.
        """
        for name, digest in self._ledger.replaced.items():
            if not self.path(name).is_symlink() and self._is(name, digest):
                self.path(name).unlink()
        if self._ledger.replaced:
            self.save(replace(self._ledger, replaced={}))

    def _is(self, name: str, digest: str) -> bool:
        path = self.path(name)
        return path.is_file() and file_digest(path) == digest


@contextmanager
def open_run_folder(
    root: Path, fresh: Ledger, differs: Callable[[ModelIdentity], str], *, force: bool
) -> Iterator[RunFolder]:
    """Lock the folder and read its ledger, or start the `fresh` one.

    differs: says how the current model differs from the one in a ledger; "" if it is the same.

    Raises:
        LrcompressError: the folder is foreign, in use, of another model, or cannot be written.
    """

    def claim() -> Ledger:
        refuse_foreign(root, force=force)
        try:
            root.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise LrcompressError(
                f"{root}: cannot be created ({error.strerror}); choose another output folder"
            ) from error
        refuse_links(root)
        held.enter_context(locked(root))
        if (root / LEDGER_NAME).is_file():  # else the files there are not ours
            for folder in (root, *(root / name for name in FOLDERS)):
                remove_temporaries(folder)
        ledger = _ledger_of(root, fresh, differs, force=force)
        # Marks the folder as a run folder, and proves that it is writable
        RunFolder(root, ledger).save(ledger)
        return ledger

    with ExitStack() as held:
        yield RunFolder(root, on_main(claim))


def read_ledger(root: Path) -> Ledger | None:
    path = root / LEDGER_NAME
    if not path.is_file():
        return None
    return Ledger.from_json(path.read_text(encoding="utf-8", errors="replace"), str(path))


def _ledger_of(
    root: Path, fresh: Ledger, differs: Callable[[ModelIdentity], str], *, force: bool
) -> Ledger:
    try:
        found = read_ledger(root)
    except LrcompressError:
        if force:
            _remove_work(root / WORK_NAME)
            return fresh
        raise
    if found is None:
        return fresh
    known = found.identity or ModelIdentity(found.model_fingerprint)
    difference = differs(known)
    if not difference:
        return found if found.identity is not None else replace(found, identity=fresh.identity)
    if force:
        _remove_work(root / WORK_NAME)  # its keys do not tell functions with equal weights apart
        return replace(fresh, replaced=found.emptied().replaced)
    raise LrcompressError(
        f"{root}: holds a run of {found.model} with {difference}; choose another output folder, "
        "or --force to replace it"
    )


def _only(own: Path) -> None:
    """Create the folder `own` if needed, and delete those of other stages beside it."""
    _remove_work(own.parent, but=own)
    if own.is_symlink():
        own.unlink()
    own.mkdir(parents=True, exist_ok=True)


def _remove_work(folder: Path, *, but: Path | None = None) -> None:
    """Remove the stages' folders in `folder`, except `but`, and `folder` itself if it is empty.

    Other files stay: with --force, `work` may be a user's folder.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for stale in folder.iterdir():
        if stale != but and WORK_OF_STAGE.fullmatch(stale.name) and not stale.is_symlink():
            shutil.rmtree(stale, ignore_errors=True)
    with suppress(OSError):
        folder.rmdir()


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
