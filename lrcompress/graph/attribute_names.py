"""A patch for torch.fx that allows submodules to have any name that torch.nn accepts.

torch.fx generates code such as ``self.parts.in.weight``, which is invalid if a name is a Python
keyword, and quotes other names without escaping. Seen in torch 2.13.
"""

from __future__ import annotations

import contextlib
import keyword
from collections.abc import Iterator

import torch.fx.graph


@contextlib.contextmanager
def any_attribute_name() -> Iterator[None]:
    """Patch torch.fx within this context, so that graphs can access attributes of any name."""
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
