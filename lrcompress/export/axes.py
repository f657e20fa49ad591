"""Find the free axes of a graph's inputs: those for which the network accepts other sizes.

Nothing is guessed from names: the network is run on its example with each axis in other sizes. An
axis is free if neighbouring and distant sizes work. Its range, its step and the axes that are
coupled with it are found by trials too. An AxisRequest overrides the result.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from torch import nn

from lrcompress.errors import ExportError
from lrcompress.export.axis_groups import AxisGroup, find_groups
from lrcompress.export.axis_metadata import BATCH, SEQUENCE, Axes
from lrcompress.export.axis_probe import Axis, Probe, unchanged_buffers
from lrcompress.export.axis_range import find_range
from lrcompress.export.graph_axes import AS_REQUESTED, GraphAxes, NamedAxes, is_length, notes_on
from lrcompress.network.batches import Batch, batch_size

_LARGEST_TABLE = 4096  # most rows of a table of positions that is tried as a limit
_TABLES_TRIED = 6
_OFTEN = 3  # a number of rows that this many weights have is a layer size, not a table's


@dataclass(frozen=True)
class AxisRequest:
    """The user's request for axes. By default all axes are free that can be."""

    dynamic: Axes = field(default_factory=dict)  # name "": a default name
    fixed: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    static_sequence: bool = False  # axis 1 of ids and masks is fixed


def find_axes(module: nn.Module, batch: Batch, request: AxisRequest | None = None) -> GraphAxes:
    """Find the axes of `batch` for which the network accepts other sizes, by forward passes.

    Raises:
        ExportError: the inputs do not share a batch axis, the network fails on them, or the
            request names an axis that does not exist or cannot be free.
    """
    request = request or AxisRequest()
    _check_named(batch, request.dynamic, "dynamic")
    _check_named(batch, request.fixed, "fixed")
    _check_examples(batch)
    with unchanged_buffers(module):
        probe = Probe(module, batch)
        rows = _rows(probe, batch)
        others = [(name, axis) for name, t in batch.items() for axis in range(1, t.dim())]
        groups = [rows, *find_groups(probe, others, _tables(module))]
        mixing = rows.range is not None and probe.mixes_examples()
    named = tuple(_named(groups, batch, request, probe.network))
    notes = tuple(notes_on(named, batch, probe.network, mixing=mixing))
    ranks = {name: tensor.dim() for name, tensor in batch.items()}
    return GraphAxes(probe.network, ranks, named, notes)


def _check_named(batch: Batch, axes: Mapping[str, Iterable[int]], kind: str) -> None:
    for name, requested in axes.items():
        if name not in batch:
            raise ExportError(
                f"{kind} axes: no input named {name!r}; the inputs are {', '.join(batch)}"
            )
        rank = batch[name].dim()
        for axis in requested:
            if not 0 <= axis < rank:
                raise ExportError(
                    f"{kind} axes: {name} has {rank} axes, there is no axis {axis}; "
                    f"name one from 0 to {rank - 1}"
                )


def _check_examples(batch: Batch) -> None:
    for name, tensor in batch.items():
        if tensor.dim() == 0:
            raise ExportError(f"input {name} is a scalar; give every input a batch axis first")
    rows = {tensor.shape[0] for tensor in batch.values()}
    if len(rows) != 1:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in batch.items())
        raise ExportError(
            f"the inputs differ in their number of examples: {shapes or 'no inputs'}; "
            "give every input a batch axis first"
        )


def _rows(probe: Probe, batch: Batch) -> AxisGroup:
    axes = tuple((name, 0) for name in batch)
    found, reason = find_range(lambda rows: probe.failure({}, rows), probe.rows)
    if found is None:
        return AxisGroup(axes, probe.rows, None, reason)
    if found.least > 1:
        reason = probe.failure({}, 1) or ""
    return AxisGroup(axes, batch_size(batch), found, reason)


def _tables(module: nn.Module) -> list[int]:
    """Return axis sizes that may come from a table of positions or from an attention mask."""
    rows: Counter[int] = Counter()
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.dim() == 2:
            rows[tensor.shape[0]] += 1
        elif tensor.dim() > 2 and tensor.shape[0] == 1:
            rows.update(set(tensor.shape))
    likely = [n for n, count in rows.items() if count < _OFTEN and 1 < n <= _LARGEST_TABLE]
    return sorted(likely)[-_TABLES_TRIED:]


def _named(
    groups: list[AxisGroup], batch: Batch, request: AxisRequest, network: str
) -> Iterator[NamedAxes]:
    taken: set[str] = set()
    for group in groups:
        dynamic = [(name, a) for name, a in group.axes if a in request.dynamic.get(name, {})]
        labels = (request.dynamic[name][axis] for name, axis in dynamic)
        label = next(filter(None, labels), "") or _name(group, batch, taken)
        taken.add(label)
        fixed = next((axis for axis in group.axes if _to_be_fixed(request, batch, axis)), None)
        if dynamic and fixed is not None:
            raise ExportError(
                f"axis {fixed[1]} of {fixed[0]} is requested to be both dynamic and fixed; "
                "its size is that of every axis that is coupled with it: leave one of them out"
            )
        if dynamic and group.range is None:
            name, axis = dynamic[0]
            raise ExportError(
                f"dynamic axes: {network} takes axis {axis} of {name} in size {group.size} only "
                f"({group.reason}); leave it out of the dynamic axes"
            )
        why = AS_REQUESTED if fixed is not None else ""
        if group.range is None:
            why = group.reason
        yield NamedAxes(label, group, bool(dynamic), why)


def _to_be_fixed(request: AxisRequest, batch: Batch, axis: Axis) -> bool:
    named = axis[1] in request.fixed.get(axis[0], ())
    return named or (request.static_sequence and is_length(batch, axis))


def _name(group: AxisGroup, batch: Batch, taken: set[str]) -> str:
    """Return "batch", "sequence" (ids and masks), "height" or "width" (first image), or another."""
    first, axis = group.axes[0]
    lengths = [name for name, place in group.axes if is_length(batch, (name, place))]
    if axis == 0:
        return BATCH
    if lengths:
        name = SEQUENCE if SEQUENCE not in taken else f"{lengths[0]}_{SEQUENCE}"
        return re.sub(r"\W", "_", name)
    side = {2: "height", 3: "width"}.get(axis, "")
    if batch[first].dim() == 4 and side and side not in taken and len(group.axes) == 1:
        return side
    return re.sub(r"\W", "_", f"{first}_{axis}")
