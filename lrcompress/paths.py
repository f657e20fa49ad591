"""Checks and expansion of paths given by users and paths read from files."""

from __future__ import annotations

import stat
from pathlib import Path, PurePosixPath, PureWindowsPath

from lrcompress.errors import LrcompressError


def expanded(text: str, error: type[LrcompressError]) -> Path:
    """Return the path with `~` expanded. Raises `error` if `~user` names an unknown user."""
    try:
        return Path(text).expanduser()
    except RuntimeError as cause:
        raise error(f"{text}: no such user; write the path in full") from cause


def stays_inside(name: str) -> bool:
    """Whether a relative path read from a file stays inside that file's folder, on any system.

    Links may lead outside: model hubs store their files behind links.
    """
    kinds = (PurePosixPath(name), PureWindowsPath(name))
    return (
        name.isprintable()
        and bool(kinds[0].name)
        and not any(path.anchor or ".." in path.parts for path in kinds)
    )


def check_regular(path: Path, error: type[LrcompressError]) -> None:
    """Raise `error` for a pipe or a device, which may never end. Links are followed.

    Other problems are reported when the file is read.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise error(f"{path}: is a pipe or a device, which has no end; copy it into a file")
