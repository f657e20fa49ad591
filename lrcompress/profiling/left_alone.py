"""What a network holds that no structure applies to, in one line for its user."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence

from lrcompress.layers import LeftAlone
from lrcompress.wording import listed

MENTIONED = 0.05  # share of all parameters from which it is worth a warning
REASONS = 3  # told in the line; the report has them all


def left_alone_warning(left_alone: Sequence[LeftAlone], total_params: int) -> tuple[str, ...]:
    """Kinds, shares and reasons of the weights that stay, where they are many; norms and biases
    are not counted."""
    groups: dict[tuple[str, str], list[LeftAlone]] = defaultdict(list)
    for item in left_alone:
        if item.matrix_params:
            groups[item.kind, item.reason].append(item)
    held = {key: sum(item.matrix_params for item in items) for key, items in groups.items()}
    if not total_params or sum(held.values()) <= MENTIONED * total_params:
        return ()
    order = sorted(held, key=lambda key: (-held[key], key))
    told = [
        f"{_part(held, key, total_params)}{_named(groups[key])} ({key[1]})"
        for key in order[:REASONS]
    ]
    more = len(order) - REASONS
    rest = [f"{more} more kinds"] if more > 0 else []
    share = _share(sum(held.values()), total_params)
    return (f"left alone: {share} of the parameters: {'; '.join([*told, *rest])}",)


def _named(items: Sequence[LeftAlone]) -> str:
    kind, names = items[0].kind, [item.name for item in items if item.name]
    count = f"{len(items)} " if len(items) > 1 else ""
    return f"{count}{kind} {listed(names, most=2)}".strip()


def _part(held: Mapping[tuple[str, str], int], key: tuple[str, str], total: int) -> str:
    """ "50 % in ", where there is more than one kind."""
    return f"{_share(held[key], total)} in " if len(held) > 1 else ""


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.0f} %"
