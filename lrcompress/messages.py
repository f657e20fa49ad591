"""Untrusted values and names made printable and short enough for one-line messages."""

from __future__ import annotations

import json
from collections.abc import Sequence

# Characters that Unicode counts as letters or marks but that are invisible: fillers, joiners and
# variation selectors
INVISIBLE = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)


def printable(text: str) -> str:
    """Escape characters that move the cursor, change the text direction or are invisible.

    Line ends, control and format characters, lone surrogates and invisible letters are written as
    Python escapes, such as \\x1b or \\u202e.
    """
    if text.isprintable() and (text.isascii() or INVISIBLE.isdisjoint(text)):
        return text
    return "".join(
        c if c.isprintable() and c not in INVISIBLE else c.encode("unicode_escape").decode()
        for c in text
    )


def printable_lines(text: str) -> str:
    """Like `printable`, but line ends are kept."""
    return "\n".join(printable(line) for line in text.split("\n"))


def shown(value: object, length: int = 60) -> str:
    """A value from a file, as JSON of at most `length` characters."""
    try:
        return _cut(json.dumps(value, default=repr), length)
    except RecursionError:
        return "a deeply nested value"


def label(name: str) -> str:
    """A name from a file: unquoted if printable and at most 120 characters, else as JSON."""
    return name if printable(name) == name and 0 < len(name) <= 120 else shown(name, 120)


def listed(names: Sequence[str], most: int = 3) -> str:
    """Join names with commas, at most `most` of them: 'a, b, c and 4 more'."""
    more = len(names) - most
    return ", ".join(label(n) for n in names[:most]) + (f" and {more} more" if more > 0 else "")


def one_line(cause: BaseException, length: int = 160) -> str:
    """The first line of an exception's message, or its class name if the message is empty."""
    lines = (line.strip() for line in str(cause).splitlines())
    first = next((line for line in lines if line), type(cause).__name__)
    return printable(_cut(first, length))


def _cut(text: str, length: int) -> str:
    return text if len(text) <= length else text[: length - 3] + "..."
