"""Find the axes that are free in both the network and its trace.

torch.export turns a size into a constant where the network's code uses it as a plain number (in a
loop, or for a table of that length). Such an axis is fixed, with a note, unless the user asked for
it to be free.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import TypeVar

import torch
from torch import nn

from lrcompress.errors import ExportError
from lrcompress.export.axes import AxisRequest, find_axes
from lrcompress.export.axis_metadata import BATCH, SEQUENCE
from lrcompress.export.example import tracing_example
from lrcompress.export.forward import NamedForward, check_arguments
from lrcompress.export.graph_axes import GraphAxes
from lrcompress.export.precision import cast_copy
from lrcompress.export.tracing import check_trace
from lrcompress.network.batches import Batch

Result = TypeVar("Result")

_TRACED = "its trace holds the size"


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
    forward = NamedForward(
        cast_copy(module, "fp32"), list(batch), torch.float32, keep_io=True
    ).eval()

    def attempt(axes: GraphAxes) -> None:
        example = forward.crossing(tracing_example(module, batch, axes))
        check_trace(forward, example, axes.free)

    return settle(found, attempt)[1]


def settle(axes: GraphAxes, attempt: Callable[[GraphAxes], Result]) -> tuple[Result, GraphAxes]:
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
    told = f"{error} {error.__cause__ or ''}"
    free = [one.name for one in axes.named if one.free and not one.asked]
    named = [name for name in free if re.search(rf"\b{re.escape(name)}\b", told)]
    beyond = [name for name in free if name != BATCH and not name.endswith(SEQUENCE)]
    seen: list[set[str]] = [set()]
    for fixed in (named, beyond, [n for n in free if n != BATCH], free):
        if set(fixed) not in seen:
            seen.append(set(fixed))
            yield _with_fixed(axes, set(fixed), error)


def _with_fixed(axes: GraphAxes, names: set[str], error: ExportError) -> GraphAxes:
    named = tuple(
        replace(one, why_fixed=_TRACED) if one.free and one.name in names else one
        for one in axes.named
    )
    notes = [
        f"axis {axis} of {name} is fixed to {one.group.size}: {axes.network} takes other sizes, "
        f"but its trace does not ({_reason(error)})"
        for one in named
        if one.why_fixed == _TRACED
        for name, axis in one.group.axes[:1]
    ]
    return replace(axes, named=named, notes=(*axes.notes, *notes))


def _reason(error: ExportError) -> str:
    """Return the cause in the message, without the advice at its end."""
    return str(error).split(": ", 1)[-1].rsplit("; ", 1)[0]
