"""A lock that admits one run at a time to a folder. It is released when its process ends."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import FileLock, Timeout

from lrcompress.errors import LrcompressError

LOCK_NAME = ".lock"
NUMBER = re.compile(r"\d{0,20}\s*")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock.

    Raises:
        LrcompressError: another process holds it, the folder cannot be written, or the file of
            that name is not a lock.
    """
    path = folder / LOCK_NAME
    _refuse_foreign(path)
    lock = FileLock(path, thread_local=False)
    with ExitStack() as held:
        try:
            lock.acquire(blocking=False)
            held.callback(lock.release)
            _refuse_foreign(path)  # it may have been created since the first check
            path.write_text(str(os.getpid()), encoding="ascii")
        except Timeout as cause:
            raise LrcompressError(
                f"{folder}: another run (process {_holder(path) or 'unknown'}) is using it; "
                "wait until it ends, or choose another output folder"
            ) from cause
        except OSError as cause:
            raise LrcompressError(
                f"{folder}: cannot be written ({cause.strerror}); choose another output folder"
            ) from cause
        try:
            yield
        finally:
            with suppress(OSError):
                path.unlink()


def _refuse_foreign(path: Path) -> None:
    """Raise LrcompressError unless the file is absent or a lock: a small regular file without other
    hard links that holds a process id or nothing. Any other file would be overwritten and removed.
    """
    try:
        found = os.lstat(path)
    except OSError:
        return
    own = stat.S_ISREG(found.st_mode) and found.st_nlink == 1 and found.st_size < 64
    if not own or NUMBER.fullmatch(_holder(path)) is None:
        raise LrcompressError(
            f"{path}: is not the lock of a run, but a link or another file; remove it, or choose "
            "another output folder"
        )


def _holder(path: Path) -> str:
    try:
        return path.read_text(encoding="ascii", errors="replace").strip()
    except OSError:
        return ""
