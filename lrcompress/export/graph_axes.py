"""The axes of a graph's inputs: their names, which ones are free, and notes for the user."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from lrcompress.export.axis_groups import AxisGroup
from lrcompress.export.axis_metadata import KnownAxis
from lrcompress.export.axis_probe import Axis
from lrcompress.export.axis_range import AxisRange
from lrcompress.network.batches import Batch

AS_ASKED = "as asked"  # reason for fixing an axis for which the network accepts other sizes

_ANY = AxisRange()
_LINE = 70  # most characters of a reason in a line that lists several


@dataclass(frozen=True)
class NamedAxes:
    """A group of axes and its name in the graph."""

    name: str
    group: AxisGroup
    asked: bool  # whether the user asked for it to be free
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
            here = KnownAxis(one.group.range, one.group.size)
            if (other := found.get(one.name)) is not None:
                here = KnownAxis(other.range.intersection(here.range), other.size)
            found[one.name] = here
        return found

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each input: its axes, and the reasons why some are fixed."""
        return tuple(_lines(self))


def is_length(batch: Batch, axis: Axis) -> bool:
    tensor = batch[axis[0]]
    return axis[1] == 1 and tensor.dim() == 2 and not tensor.is_floating_point()


def notes_on(
    named: tuple[NamedAxes, ...], batch: Batch, network: str, *, mixing: bool
) -> Iterator[str]:
    """Yield a note for each way in which the batch or the length is not free, or examples mix."""
    for one in named:
        group, is_batch = one.group, one.group.axes[0][1] == 0
        if one.why_fixed == AS_ASKED:
            continue
        if is_batch and group.range is not None and group.range != _ANY:
            yield (
                f"the graph's batch is {group.range}: {network} fails for others"
                f"{_because(group.reason)}"
            )
        elif is_batch and not one.free:
            yield f"the graph's batch is fixed to {group.size}: {network} fails {group.reason}"
        elif not one.free and any(is_length(batch, axis) for axis in group.axes):
            names = ", ".join(name for name, _ in group.axes)
            yield (
                f"the length of {names} is fixed to {group.size}: {network} fails {group.reason}"
            )
    if mixing:
        yield (
            f"{network} mixes the examples of a batch: what it gives for one depends on the others,"
            " in the graph too"
        )


def _because(reason: str) -> str:
    return f" (at 1: {reason})" if reason else ""


def _short(reason: str) -> str:
    return reason if len(reason) <= _LINE else reason[: _LINE - 3] + "..."


def _lines(axes: GraphAxes) -> Iterator[str]:
    for name, rank in axes.ranks.items():
        shape: list[str] = []
        reasons: dict[str, None] = {}
        for axis in range(rank):
            one = next(one for one in axes.named if (name, axis) in one.group.axes)
            if not one.free:
                shape.append(str(one.group.size))
                reasons[f"axis {axis} fixed ({_short(one.why_fixed)})"] = None
            elif one.group.range is None or one.group.range == _ANY:
                shape.append(one.name)
            else:
                shape.append(f"{one.name}: {one.group.range}")
        yield "; ".join([f"{name} ({', '.join(shape)})", *reasons])
