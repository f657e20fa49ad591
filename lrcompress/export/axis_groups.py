"""Groups of coupled axes, such as the length of ids and mask, or both sides of an adjacency."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

from lrcompress.export.axis_probe import Axis, Probe
from lrcompress.export.axis_range import AxisRange, find_range

_MOST_COUPLED = 6  # among more axes of equal size, couplings are not searched


@dataclass(frozen=True)
class AxisGroup:
    """Axes that share one size, and the sizes that the network accepts in trials."""

    axes: tuple[Axis, ...]
    size: int  # in the example
    range: AxisRange | None  # None: no other size works
    reason: str  # why no other size works, or why size 1 does not


def find_groups(probe: Probe, axes: Sequence[Axis], tables: Sequence[int]) -> list[AxisGroup]:
    """Partition `axes` into groups. Only axes of the same size in the example can be coupled."""
    by_size: dict[int, list[Axis]] = defaultdict(list)
    for name, axis in axes:
        by_size[probe.batch[name].shape[axis]].append((name, axis))
    found: list[AxisGroup] = []
    for size, alike in by_size.items():
        whole = _moved(probe, tuple(alike), size, tables)
        if whole.range is None:
            found += _parts(probe, alike, size, tables)
            continue
        for part in _separated(probe, alike, whole):
            found.append(whole if part == whole.axes else _moved(probe, part, size, tables))
    order = {axis: place for place, axis in enumerate(axes)}
    return sorted(found, key=lambda group: order[group.axes[0]])


def _moved(probe: Probe, axes: tuple[Axis, ...], size: int, tables: Sequence[int]) -> AxisGroup:
    def fails(new: int) -> str | None:
        return probe.failure(dict.fromkeys(axes, new))

    return AxisGroup(axes, size, *find_range(fails, size, tables))


def _parts(
    probe: Probe, axes: Sequence[Axis], size: int, tables: Sequence[int]
) -> Iterator[AxisGroup]:
    """Split axes that cannot all change together: yield the smallest sets that can."""
    left = list(axes)
    while left:
        first, others = left[0], left[1:]
        most = len(others) if len(left) <= _MOST_COUPLED else 1
        sets = [(first, *more) for count in range(most + 1) for more in combinations(others, count)]
        tried = (_moved(probe, axes, size, tables) for axes in sets)
        group = next((group for group in tried if group.range is not None), None)
        group = group or _moved(probe, (first,), size, tables)
        yield group
        left = [axis for axis in left if axis not in group.axes]


def _separated(probe: Probe, axes: Sequence[Axis], whole: AxisGroup) -> Iterator[tuple[Axis, ...]]:
    """Split axes that can change together into the smallest parts that can change alone."""
    left = list(axes)
    middle = _middle(whole)
    if len(left) > _MOST_COUPLED or middle is None:
        yield tuple(left)
        return
    while left:
        sets = (s for count in range(1, len(left)) for s in combinations(left, count))
        part = next((s for s in sets if _independent(probe, axes, s, middle)), tuple(left))
        yield part
        left = [axis for axis in left if axis not in part]


def _middle(whole: AxisGroup) -> tuple[int, int] | None:
    """Return a size whose two neighbours are in the range and exceed one, and the step.

    At size one, broadcasting would hide a coupling.
    """
    assert whole.range is not None
    step = whole.range.step
    for size in (whole.size, whole.size - step, whole.size + step, whole.size + 2 * step):
        if size - step > 1 and all(n in whole.range for n in (size - step, size, size + step)):
            return size, step
    return None


def _independent(
    probe: Probe, axes: Sequence[Axis], part: Sequence[Axis], middle: tuple[int, int]
) -> bool:
    """Whether the part can change alone, both up and down.

    Both are tried because a network may cut a longer mask to fit, but fails on a shorter one.
    """
    size, step = middle
    return all(
        probe.failure(dict.fromkeys(axes, size) | dict.fromkeys(part, other)) is None
        for other in (size + step, size - step)
    )
