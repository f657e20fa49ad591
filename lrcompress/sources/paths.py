"""Paths as people write them."""

from __future__ import annotations

from pathlib import Path

from lrcompress.errors import LrcompressError


def expanded(text: str, error: type[LrcompressError]) -> Path:
    """With the home folder in place of `~`. Raises `error` for that of a user who is not there."""
    try:
        return Path(text).expanduser()
    except RuntimeError as cause:
        raise error(f"{text}: no such user; write the path in full") from cause
