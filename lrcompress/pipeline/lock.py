"""One run in a folder at a time. The kernel drops the lock with the process, however it ends."""

from __future__ import annotations

import os
import re
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lrcompress.errors import LrcompressError

LOCK_NAME = ".lock"
NUMBER = re.compile(rb"\d{0,20}\s*")
# A link is not followed, and opening a pipe does not wait for its other end
FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the folder's lock.

    Raises:
        LrcompressError: another process holds it, the folder cannot be written, or the file of
            that name is no lock.
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
            handle = os.open(path, FLAGS, 0o644)
        except OSError as error:
            if path.is_symlink():
                raise _foreign(path) from error
            raise _unwritable(folder, error) from error
        if not _is_lock(handle):
            os.close(handle)
            raise _foreign(path)
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


def _is_lock(handle: int) -> bool:
    """Whether it is a file of this folder alone that holds the number of a process or nothing:
    any other is somebody's, and would be overwritten and removed."""
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
        return False
    content = os.read(handle, 64)
    os.lseek(handle, 0, os.SEEK_SET)
    return NUMBER.fullmatch(content) is not None


def _foreign(path: Path) -> LrcompressError:
    return LrcompressError(
        f"{path}: is not the lock of a run (a link, or somebody's file); remove it, or choose "
        "another output folder"
    )


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
