"""Modules to which no structure applies, grouped by kind and reason, the largest first."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from lrcompress.layers import LeftAlone
from lrcompress.messages import listed

MENTIONED = 0.05  # share of all parameters, above which there is a warning
REASONS = 3  # groups named in a line; the report lists all


class Item(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def kind(self) -> str: ...
    @property
    def params(self) -> int: ...
    @property
    def reason(self) -> str: ...


@dataclass(frozen=True)
class LeftGroup:
    """Modules of one kind that are left alone for one reason."""

    kind: str
    reason: str
    names: tuple[str, ...]
    params: int

    @property
    def label(self) -> str:
        """A label such as "3 Conv3d a, b and 1 more"."""
        count = f"{len(self.names)} " if len(self.names) > 1 else ""
        named = [name for name in self.names if name]
        return f"{count}{self.kind} {listed(named, most=2)}".strip()


def left_alone_groups(items: Iterable[Item]) -> tuple[LeftGroup, ...]:
    """Group items by kind and reason; the group with the most parameters first."""
    found: dict[tuple[str, str], list[Item]] = defaultdict(list)
    for item in items:
        found[item.kind, item.reason].append(item)
    groups = [
        LeftGroup(*key, tuple(x.name for x in own), sum(x.params for x in own))
        for key, own in found.items()
    ]
    return tuple(sorted(groups, key=lambda group: (-group.params, group.kind, group.reason)))


def left_alone_warning(left_alone: Sequence[LeftAlone], total_params: int) -> tuple[str, ...]:
    """Return a warning with kinds, shares and reasons if many weights are left alone.

    Norms and biases are not counted.
    """
    groups = left_alone_groups(
        replace(item, params=item.matrix_params) for item in left_alone if item.matrix_params
    )
    held = sum(group.params for group in groups)
    if not total_params or held <= MENTIONED * total_params:
        return ()
    which = left_alone_in_words(groups, total_params)
    return (f"left alone: {_share(held, total_params)} of the parameters: {which}",)


def left_alone_in_words(groups: Sequence[LeftGroup], whole: int) -> str:
    """Describe the largest groups in a line; several groups each get their share of `whole`."""
    several = len(groups) > 1
    parts = [
        f"{f'{_share(group.params, whole)} in ' * several}{group.label} ({group.reason})"
        for group in groups[:REASONS]
    ]
    more = len(groups) - REASONS
    return "; ".join([*parts, *([f"{more} more kinds"] if more > 0 else [])])


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"
