"""A repair of torch.fx: parts of a network may have any name that torch itself lets them have.

torch.fx writes code such as ``self.parts.in.weight``, which is none where a name is a keyword of
Python, and puts others between quotes as they are. Seen in torch 2.13.
"""

from __future__ import annotations

import contextlib
import keyword
from collections.abc import Iterator

import torch.fx.graph


@contextlib.contextmanager
def any_attribute_name() -> Iterator[None]:
    """Graphs made meanwhile reach attributes of any name."""
    written = torch.fx.graph._format_target
    torch.fx.graph._format_target = _reached
    try:
        yield
    finally:
        torch.fx.graph._format_target = written


def _reached(base: str, target: str) -> str:
    for name in target.split("."):
        plain = name.isidentifier() and not keyword.iskeyword(name)
        base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
    return base
