"""Options for the axes of the graph's inputs, written as NAME:AXIS."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from lrcompress_cli.options.gather import gathered

if TYPE_CHECKING:
    from lrcompress.export.axes import AxisRequest

InputAxis = tuple[str, int]


class AxisOfInput(click.ParamType[InputAxis]):
    """An axis of an input: pixel_values:2 → ("pixel_values", 2)."""

    name = "axis"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> InputAxis:
        if isinstance(value, tuple):
            return value
        name, colon, axis = str(value).rpartition(":")
        if not (colon and name and axis.isascii() and axis.isdecimal()):
            self.fail(
                f"{value!r} is not an axis of an input; write NAME:AXIS, such as pixel_values:2",
                param,
                ctx,
            )
        return name, int(axis)


@dataclass(frozen=True)
class AxisChoice:
    dynamic: tuple[InputAxis, ...]
    fixed: tuple[InputAxis, ...]

    def request(self) -> AxisRequest:
        from lrcompress.export.axes import AxisRequest

        dynamic = {name: dict.fromkeys(axes, "") for name, axes in _by_input(self.dynamic).items()}
        return AxisRequest(dynamic, _by_input(self.fixed))


def _by_input(axes: Iterable[InputAxis]) -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {}
    for name, axis in axes:
        found[name] = (*found.get(name, ()), axis)
    return found


axis_options = gathered(
    AxisChoice,
    "axes",
    click.option(
        "--dynamic",
        type=AxisOfInput(),
        metavar="NAME:AXIS",
        multiple=True,
        help="Stop unless this axis of an input, counted from 0, can be free in the graph; by "
        "default, all axes are free that the network accepts in other sizes.",
    ),
    click.option(
        "--fixed",
        type=AxisOfInput(),
        metavar="NAME:AXIS",
        multiple=True,
        help="Fix this axis of an input, and those coupled with it, to the size in the data.",
    ),
)
