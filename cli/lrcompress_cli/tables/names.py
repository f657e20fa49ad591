"""Table cells for text from files: printable, and short enough for a column."""

from __future__ import annotations

from rich.text import Text

from lrcompress.messages import printable


def cell(words: object, style: str = "") -> Text:
    """Text from a file, on one line and without characters that a terminal would act on."""
    return Text(printable(str(words)), style=style)


def fitted(name: str, width: int) -> str:
    """`encoder.layer.0.attention.self.query` → `e.l.0.a.self.query`: the last parts tell most."""
    parts = printable(name).split(".")
    for k, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= width:
            break
        if not part.isdecimal():
            parts[k] = part[:1]
    return ".".join(parts)
