"""Paths as people write them, and as files name them."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from lrcompress.errors import LrcompressError


def expanded(text: str, error: type[LrcompressError]) -> Path:
    """With the home folder in place of `~`. Raises `error` for that of a user who is not there."""
    try:
        return Path(text).expanduser()
    except RuntimeError as cause:
        raise error(f"{text}: no such user; write the path in full") from cause


def stays_inside(name: str) -> bool:
    """Whether a name that a file gives lies in that file's folder, on any system.

    Links are the user's own and may lead out: hubs keep their files behind them.
    """
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    return (
        name.isprintable()
        and bool(kinds[0].name)
        and not any(path.anchor or ".." in path.parts for path in kinds)
    )


def check_regular(path: Path, error: type[LrcompressError]) -> None:
    """Raises `error` for a pipe or device, which may never end; other faults are told on reading.

    Links are followed.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise error(f"{path}: is a pipe or a device, which has no end; copy it into a file")
