"""An option type for number formats of weights."""

from __future__ import annotations

from typing import Any

import click

# Literal, so that --help does not import torch; a test compares it with the library's table.
FORMAT_NAMES = (
    "fp32", "fp16", "bf16", "int8", "int8-dynamic", "int4", "uint4", "int2", "uint2",
)  # fmt: skip
AUTO = "auto"


class FormatNames(click.ParamType[tuple[str, ...]]):
    """A list of formats: "fp32,int4" → ("fp32", "int4/32"); auto stays, for the budget decides."""

    name = "formats"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        from lrcompress.errors import PlanError
        from lrcompress.number_formats import parse_format

        names: list[str] = []
        for part in str(value).lower().split(","):
            name = part.strip()
            try:
                names.append(name if name == AUTO else str(parse_format(name)))
            except PlanError as error:
                self.fail(f"{error}, or {AUTO}", param, ctx)
        return tuple(dict.fromkeys(names))


formats_option = click.option(
    "--formats",
    type=FormatNames(),
    metavar="NAMES",
    help="Number formats that weights may be stored in, separated by commas: "
    f"{', '.join(FORMAT_NAMES)}, those of 8 bits or less with a block size (int4/128), or auto. By "
    "default auto for a budget of bytes or latency, else the format of --precision alone.",
)
