"""Find the axes that are free in both the network and its trace, and the example to trace with.

torch.export turns a size into a constant where the network's code uses it as a plain number (in a
loop, or for a table of that length). Such an axis is fixed, with a note, unless the user requested
it to be free. A size of one, or a size that equals another, becomes a constant too. So the free
axes of the example are cut or repeated to sizes that nothing else in the network has.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain, count, islice
from typing import TypeVar

import torch
from torch import nn

from lrcompress.errors import ExportError
from lrcompress.export.axes import AxisRequest, find_axes
from lrcompress.export.axis_metadata import BATCH, SEQUENCE, KnownAxis
from lrcompress.export.forward import check_arguments
from lrcompress.export.graph_axes import GraphAxes
from lrcompress.export.precision import float32_forward
from lrcompress.export.tracing import check_trace
from lrcompress.network.batches import Batch

Result = TypeVar("Result")

_TRACED = "the trace fixes the size"
_SIZES = (7, 11, 13, 5, 17, 19, 23, 3, 29, 31, 37, 41)
_BATCHES = (2, 3, 5, 4, 6)
_MULTIPLES = 12  # of an axis's step, searched for a unique size


def exportable_axes(
    module: nn.Module, batch: Batch, request: AxisRequest | None = None
) -> GraphAxes:
    """Return the axes that an export of `module` will have, from trials and a trace.

    This takes seconds, so a network that cannot be exported fails before long work on it.

    Raises:
        ExportError: the network cannot be traced, or not with the requested axes.
    """
    check_arguments(module, batch)
    found = find_axes(module, batch, request)
    forward = float32_forward(module, batch)

    def attempt(axes: GraphAxes) -> None:
        example = forward.cast_inputs(tracing_example(module, batch, axes))
        check_trace(forward, example, axes.free)

    return first_traceable(found, attempt)[1]


def first_traceable(
    axes: GraphAxes, attempt: Callable[[GraphAxes], Result]
) -> tuple[Result, GraphAxes]:
    """Attempt with fewer and fewer free axes; return the first result that succeeds.

    Raises:
        ExportError: no attempt succeeds; the error is that of the first.
    """
    try:
        return attempt(axes), axes
    except ExportError as error:
        first = error
    for fewer in _fewer(axes, first):
        try:
            return attempt(fewer), fewer
        except ExportError:
            continue
    raise first


def _fewer(axes: GraphAxes, error: ExportError) -> Iterator[GraphAxes]:
    message = f"{error} {error.__cause__ or ''}"
    free = [one.name for one in axes.named if one.free and not one.requested]
    named = [name for name in free if re.search(rf"\b{re.escape(name)}\b", message)]
    others = [name for name in free if name != BATCH and not name.endswith(SEQUENCE)]
    seen: list[set[str]] = [set()]
    for names in (named, others, [n for n in free if n != BATCH], free):
        if set(names) not in seen:
            seen.append(set(names))
            yield _with_fixed(axes, set(names), error)


def _with_fixed(axes: GraphAxes, names: set[str], error: ExportError) -> GraphAxes:
    named = tuple(
        replace(one, why_fixed=_TRACED) if one.free and one.name in names else one
        for one in axes.named
    )
    reason = str(error).split(": ", 1)[-1].rsplit("; ", 1)[0]  # without the advice at the end
    notes = [
        f"axis {axis} of {name} is fixed to {one.group.size}: {axes.network} takes other sizes, "
        f"but its trace does not ({reason})"
        for one in named
        if one.why_fixed == _TRACED
        for name, axis in one.group.axes[:1]
    ]
    return replace(axes, named=named, notes=(*axes.notes, *notes))


def tracing_example(
    module: nn.Module, batch: Batch, axes: GraphAxes, *, unlike: Batch | None = None
) -> Batch:
    """Return `batch` with free axes repeated or cut to unique sizes that the network accepts.

    Batch and lengths are small. Other free axes keep about their size, because a network may behave
    differently at small sizes.

    unlike: another example whose sizes are also avoided.
    """
    free = axes.free
    others = (*module.parameters(), *(unlike or {}).values())
    taken = set(chain.from_iterable(tensor.shape for tensor in others))
    for name, tensor in batch.items():
        taken.update(n for axis, n in enumerate(tensor.shape) if axis not in free[name])
    sizes: dict[str, int] = {}
    for name, known in axes.known.items():
        candidates = [n for n in _candidates(name, known) if n in known.range]
        distinct = [n for n in candidates if n not in taken] or [
            n for n in candidates if n not in sizes.values()
        ]
        sizes[name] = (distinct or candidates)[0]
        taken.add(sizes[name])
    example = {name: tensor.cpu() for name, tensor in batch.items()}
    for one in axes.named:
        for name, axis in one.group.axes:
            size = sizes[one.name] if one.free else one.group.size
            index = torch.arange(size) % batch[name].shape[axis]
            example[name] = example[name].index_select(axis, index)
    return example


def _candidates(name: str, known: KnownAxis) -> Iterator[int]:
    """Yield sizes in order of preference, including the axis's own size."""
    step, least = known.range.step, known.range.least
    if name == BATCH:
        yield from _BATCHES
    elif name.endswith(SEQUENCE):  # longer ones last: they may exceed the table of positions
        yield from sorted(_SIZES, key=lambda size: size > known.size)
    yield known.size
    for multiple in range(1, _MULTIPLES):
        yield known.size + multiple * step
        yield known.size - multiple * step
    yield from islice(count(least, step), _MULTIPLES)
