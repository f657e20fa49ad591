"""Layer names short enough for a column."""

from __future__ import annotations


def fitted(name: str, width: int) -> str:
    """`encoder.layer.0.attention.self.query` → `e.l.0.a.self.query`: the last parts say most."""
    parts = name.split(".")
    for k, part in enumerate(parts[:-1]):
        if len(".".join(parts)) <= width:
            break
        if not part.isdecimal():
            parts[k] = part[:1]
    return ".".join(parts)
