"""The axes of a graph's inputs: their names, which ones are free, and notes for the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from lrcompress.export.axis_groups import AxisGroup
from lrcompress.export.axis_metadata import KnownAxis
from lrcompress.export.axis_probe import Axis
from lrcompress.export.axis_range import AxisRange
from lrcompress.export.parity_inputs import is_sequence
from lrcompress.network.batches import Batch

AS_REQUESTED = "as requested"  # reason for fixing an axis for which the network accepts other sizes

_ANY = AxisRange()
_LINE = 70  # most characters of a reason in a line that lists several


@dataclass(frozen=True)
class NamedAxes:
    """A group of axes and its name in the graph."""

    name: str
    group: AxisGroup
    requested: bool  # whether the user requested it to be free
    why_fixed: str = ""  # "": the group is free

    @property
    def free(self) -> bool:
        return not self.why_fixed


@dataclass(frozen=True)
class GraphAxes:
    """All axes of a graph's inputs, with notes for the user."""

    network: str
    ranks: Mapping[str, int]  # number of axes of each input
    named: tuple[NamedAxes, ...]
    notes: tuple[str, ...]

    @property
    def free(self) -> dict[str, dict[int, str]]:
        found: dict[str, dict[int, str]] = {name: {} for name in self.ranks}
        for one in self.named:
            for name, axis in one.group.axes if one.free else ():
                found[name][axis] = one.name
        return found

    @property
    def fixed(self) -> dict[str, tuple[int, ...]]:
        free = self.free
        return {
            name: tuple(axis for axis in range(rank) if axis not in free[name])
            for name, rank in self.ranks.items()
        }

    @property
    def known(self) -> dict[str, KnownAxis]:
        """The free axes by name. Axes that share a name get the sizes that all of them accept."""
        found: dict[str, KnownAxis] = {}
        for one in self.named:
            if not one.free or one.group.range is None:
                continue
            first = found.setdefault(one.name, KnownAxis(one.group.range, one.group.size))
            found[one.name] = replace(first, range=first.range.intersection(one.group.range))
        return found

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each input: its axes, and the reasons why some are fixed."""
        groups = {axis: one for one in self.named for axis in one.group.axes}
        return tuple(
            _line(name, [groups[name, axis] for axis in range(rank)])
            for name, rank in self.ranks.items()
        )


def is_length(batch: Batch, axis: Axis) -> bool:
    return axis[1] == 1 and is_sequence(batch[axis[0]])


def notes_on(
    named: tuple[NamedAxes, ...], batch: Batch, network: str, *, mixing: bool
) -> Iterator[str]:
    """Yield a note for each way in which the batch or the length is not free, or examples mix."""
    for one in named:
        group, is_batch = one.group, one.group.axes[0][1] == 0
        if one.why_fixed == AS_REQUESTED:
            continue
        if is_batch and group.range is not None and group.range != _ANY:
            at_one = f" (at 1: {group.reason})" if group.reason else ""
            yield f"the graph's batch is {group.range}: {network} fails for others{at_one}"
        elif is_batch and not one.free:
            yield f"the graph's batch is fixed to {group.size}: {network} fails {group.reason}"
        elif not one.free and any(is_length(batch, axis) for axis in group.axes):
            names = ", ".join(name for name, _ in group.axes)
            yield f"the length of {names} is fixed to {group.size}: {network} fails {group.reason}"
    if mixing:
        yield (
            f"{network} mixes the examples of a batch: its result for one depends on the others, "
            "in the graph too"
        )


def _line(name: str, axes: Sequence[NamedAxes]) -> str:
    shape, reasons = [], []
    for axis, one in enumerate(axes):
        if not one.free:
            shape.append(str(one.group.size))
            why = one.why_fixed
            short = why if len(why) <= _LINE else why[: _LINE - 3] + "..."
            reasons.append(f"axis {axis} fixed ({short})")
        elif one.group.range is None or one.group.range == _ANY:
            shape.append(one.name)
        else:
            shape.append(f"{one.name}: {one.group.range}")
    return "; ".join([f"{name} ({', '.join(shape)})", *reasons])
