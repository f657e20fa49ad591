"""Temporary folders that report a full disk clearly.

Libraries report a full disk in various ways, or misleadingly: ONNX Runtime says that the graph
that it could not write is not a valid graph.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrcompress.atomic import NO_SPACE
from lrcompress.errors import LrcompressError

LEAST_BYTES = 64 * 2**10  # with less free, an error is attributed to the full disk


def require_temporary_folder() -> None:
    """Raise LrcompressError if there is no temporary folder, where torch's tracer would fail."""
    try:
        tempfile.gettempdir()
    except OSError as cause:
        raise _none(cause) from cause


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """Yield an empty folder under TMPDIR that is deleted afterwards.

    Raises:
        LrcompressError: no temporary folder can be created, or its disk is full.
    """
    try:
        folder = Path(tempfile.mkdtemp())
    except OSError as cause:
        raise _none(cause) from cause
    try:
        yield folder
    except OSError as cause:
        if cause.errno in NO_SPACE:
            raise _full(folder) from cause
        raise
    except Exception as cause:
        if shutil.disk_usage(folder).free < LEAST_BYTES:
            raise _full(folder) from cause
        raise
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def require_room(folder: Path, needed_bytes: int) -> None:
    """Raise LrcompressError if the disk of `folder` has less than `needed_bytes` free."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise _full(folder)


def _none(cause: OSError) -> LrcompressError:
    return LrcompressError(
        f"no temporary folder can be made ({cause.strerror or cause}); set TMPDIR to a writable "
        "folder with free space"
    )


def _full(folder: Path) -> LrcompressError:
    return LrcompressError(
        f"{folder.parent}: no space left for temporary files; free some, or set TMPDIR to a folder "
        "with free space"
    )
