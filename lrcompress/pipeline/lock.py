"""One run in a folder at a time. The kernel drops the lock with the process, however it ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrcompress.errors import LrcompressError

LOCK_NAME = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock.

    Raises:
        LrcompressError: another process holds it, or the folder cannot be written.
    """
    path = folder / LOCK_NAME
    handle = _open_locked(path, folder)
    try:
        _sign(handle, folder)
        yield
    finally:
        with suppress(OSError):
            path.unlink()
        os.close(handle)


def _open_locked(path: Path, folder: Path) -> int:
    while True:
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise _unwritable(folder, error) from error
        try:
            _lock(handle)
        except OSError as error:
            holder = os.read(handle, 20).decode("ascii", "replace").strip()
            os.close(handle)
            raise LrcompressError(
                f"{folder}: another run (process {holder or 'unknown'}) works in it; "
                "wait for its end, or choose another output folder"
            ) from error
        # The holder before us may have unlinked the file after we opened it.
        if _is_still(handle, path):
            return handle
        os.close(handle)


def _sign(handle: int, folder: Path) -> None:
    """Our process, for whoever finds the folder locked."""
    try:
        os.ftruncate(handle, 0)
        os.write(handle, str(os.getpid()).encode())
    except OSError as error:
        raise _unwritable(folder, error) from error


def _unwritable(folder: Path, error: OSError) -> LrcompressError:
    return LrcompressError(
        f"{folder}: cannot be written ({error.strerror}); choose another output folder"
    )


def _is_still(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


if sys.platform == "win32":
    import msvcrt

    def _lock(handle: int) -> None:
        msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)

else:
    import fcntl

    def _lock(handle: int) -> None:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
