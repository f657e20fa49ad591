"""Names of the values of a graph."""

from __future__ import annotations

from collections.abc import Container
from itertools import chain, count


def unused_name(name: str, taken: Container[str]) -> str:
    """Return the name, with a number from 2 on appended if it is taken."""
    numbered = (f"{name}_{number}" for number in count(2))
    return next(one for one in chain([name], numbered) if one not in taken)
