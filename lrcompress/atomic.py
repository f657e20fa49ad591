"""Atomic writes of files and sets of files, and removal of what killed writes left behind.

Data is written under a temporary name next to its destination, `.NAME.part`: a file, or a folder
if several files are written together. The data is flushed to disk before the rename.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from safetensors import SafetensorError

from lrcompress.errors import LrcompressError
from lrcompress.messages import one_line

TEMPORARY_GLOB = ".*.part"
SAFETENSORS_GLOB = ".tmp??????"  # safetensors writes here, then renames to our temporary name
OS_ERROR_NUMBER = re.compile(r"os error (\d+)")
NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Error = type[LrcompressError]


def write_atomically(
    path: Path, writer: Callable[[Path], object], error: Error = LrcompressError
) -> None:
    """Let `writer` fill a temporary file next to `path`, then rename it to `path`.

    After a crash, `path` is the old file or the new one. A link at `path` is replaced, not
    followed. Missing parent folders are created.

    Raises:
        LrcompressError, or `error`: no space, no permission, a file where a folder should be.
    """

    def write(temporary: Path) -> None:
        # O_EXCL and O_NOFOLLOW: never open a file or follow a link that another process made here
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | getattr(os, "O_NOFOLLOW", 0)
        os.close(os.open(temporary, flags, 0o666))
        mode = temporary.stat().st_mode
        writer(temporary)
        temporary.chmod(mode)  # safetensors restricts its files to their owner
        flush(temporary)
        temporary.replace(path)

    _replace(path, write, error)


def copy_file(source: Path, target: Path) -> None:
    """Copy the content of a file atomically; raises as `write_atomically` does."""
    write_atomically(target, lambda temporary: shutil.copyfile(source, temporary))


def write_together(
    paths: Sequence[Path], writer: Callable[[Path], object], error: Error = LrcompressError
) -> None:
    """Let `writer` fill a temporary folder with files of these names, then move them into place.

    Readers open the first file, which refers to the others. It is deleted before the others are
    replaced and is moved last: a crash leaves the old set, the new set, or no first file.

    Raises:
        LrcompressError, or `error`: as in `write_atomically`.
    """
    first, *others = paths

    def write(temporary: Path) -> None:
        temporary.mkdir()
        writer(temporary)
        for path in paths:
            flush(temporary / path.name)
        if others:
            first.unlink(missing_ok=True)
            flush(first.parent)
        for path in others:
            (temporary / path.name).replace(path)
        if others:
            flush(first.parent)
        (temporary / first.name).replace(first)
        shutil.rmtree(temporary)

    _replace(first, write, error)


def refuse_unwritable(path: Path) -> None:
    """Raise LrcompressError if `path` cannot be written. Called before work that would be lost."""

    def write(temporary: Path) -> None:
        temporary.touch()
        temporary.unlink()

    _replace(path, write, LrcompressError)


def is_temporary(path: Path) -> bool:
    """Whether the name is that of an unfinished write."""
    return path.match(TEMPORARY_GLOB) or path.match(SAFETENSORS_GLOB)


def remove_temporaries(folder: Path) -> None:
    """Remove what killed writes left in `folder`. Subfolders and linked folders are skipped."""
    if folder.is_symlink() or not folder.is_dir():
        return
    for left in [path for path in folder.iterdir() if is_temporary(path)]:
        _discard(left)


def unwritable(
    path: Path, number: int | None, detail: str, error: Error = LrcompressError
) -> LrcompressError:
    """Return the error, with a one-line message, for a path that cannot be written."""
    where = path.parent
    if number in NO_SPACE:
        return error(f"{path}: no space left on its disk; free some or write elsewhere")
    if number in (errno.EACCES, errno.EPERM):
        return error(
            f"{path}: permission denied; choose a folder that you may write to, not {where}"
        )
    if number == errno.EROFS:
        return error(f"{path}: {where} is read-only; choose another output folder")
    if number in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.ENOTEMPTY):
        return error(
            f"{path}: a file is where a folder should be, or the other way "
            "round; choose another output folder"
        )
    return error(f"{path}: cannot be written ({detail}); choose another output folder")


def flush(path: Path) -> None:
    """Flush `path` to disk (fsync). Not every system supports this for folders."""
    flags = os.O_RDONLY | getattr(os, "O_BINARY", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        if path.is_dir():  # Windows cannot open folders
            return
        raise
    try:
        os.fsync(descriptor)
    except OSError as cause:
        if cause.errno not in (errno.EINVAL, errno.EBADF, errno.EROFS):
            raise
    finally:
        os.close(descriptor)


def _replace(path: Path, write: Callable[[Path], object], error: Error) -> None:
    """Call `write` with the temporary name, which is removed first and on failure.

    Its OSErrors and SafetensorErrors are raised as `error`.
    """
    temporary = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            _discard(temporary)
            write(temporary)
        except BaseException:
            _discard(temporary)
            raise
        flush(path.parent)
    except OSError as cause:
        raise unwritable(path, cause.errno, cause.strerror or one_line(cause), error) from cause
    except SafetensorError as cause:  # safetensors wraps the system's error in its own class
        number = OS_ERROR_NUMBER.search(str(cause))
        raise unwritable(
            path, int(number[1]) if number else None, one_line(cause), error
        ) from cause


def _discard(path: Path) -> None:
    """Remove a file, a link or a folder with one of our temporary names."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
