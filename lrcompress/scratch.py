"""Temporary folders whose full disk is told for what it is.

Whoever writes there words a full disk in his own way, or not at all: ONNX Runtime says that the
graph it could not write is no graph.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lrcompress.atomic import NO_SPACE
from lrcompress.errors import LrcompressError

LEAST_BYTES = 64 * 2**10  # less is no room for anything


def require_temporary_folder() -> None:
    """Raises LrcompressError where there is none: torch's tracer ends in another way then."""
    try:
        tempfile.gettempdir()
    except OSError as cause:
        raise _none(cause) from cause


@contextmanager
def scratch_folder() -> Iterator[Path]:
    """An empty folder that is gone afterwards, under TMPDIR.

    Raises:
        LrcompressError: there is no place for temporary files, or it is full.
    """
    try:
        made = tempfile.mkdtemp()
    except OSError as cause:
        raise _none(cause) from cause
    folder = Path(made)
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
    """Raises LrcompressError where a temporary folder has no room for so much."""
    if shutil.disk_usage(folder).free < needed_bytes:
        raise _full(folder)


def _none(cause: OSError) -> LrcompressError:
    return LrcompressError(
        f"no temporary folder can be made ({cause.strerror or cause}); set TMPDIR to a folder "
        "that you may write to, with room"
    )


def _full(folder: Path) -> LrcompressError:
    return LrcompressError(
        f"{folder.parent}: no space left for temporary files; free some, or set TMPDIR to a folder "
        "with room"
    )
