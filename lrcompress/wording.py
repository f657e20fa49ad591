"""Foreign values and names in the one printable line of an error message."""

from __future__ import annotations

import json
from collections.abc import Sequence


def shown(value: object, length: int = 60) -> str:
    """A value that came from a file, as JSON."""
    try:
        return _cut(json.dumps(value, default=repr), length)
    except RecursionError:
        return "a deeply nested value"


def label(name: str) -> str:
    """A name that came from a file, bare where it is harmless."""
    return name if name.isprintable() and 0 < len(name) <= 120 else shown(name, 120)


def listed(names: Sequence[str], most: int = 3) -> str:
    """'a, b, c and 4 more'."""
    more = len(names) - most
    return ", ".join(label(n) for n in names[:most]) + (f" and {more} more" if more > 0 else "")


def one_line(cause: BaseException, length: int = 160) -> str:
    """The first line of somebody else's message, or its class where it has none."""
    lines = (line.strip() for line in str(cause).splitlines())
    first = next((line for line in lines if line), type(cause).__name__)
    return _cut("".join(c if c.isprintable() else " " for c in first), length)


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
