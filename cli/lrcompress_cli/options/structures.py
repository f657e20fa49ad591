"""An option type for names of structures."""

from __future__ import annotations

from typing import Any

import click

# Literal, so that --help does not import torch; a test compares it with the library's table.
STRUCTURE_NAMES = (
    "low-rank",
    "interpolative",
    "blast",
    "monarch",
    "block-diagonal",
    "kronecker",
    "tucker2",
    "cp",
    "spatial",
    "tensor-train",
)
AUTO = "auto"
AUTO_NAMES = tuple(name for name in STRUCTURE_NAMES if name != "kronecker")  # it rarely helps


class StructureNames(click.ParamType[tuple[str, ...]]):
    """A list of names: low-rank,blast → ("low_rank", "blast"); auto → AUTO_NAMES."""

    name = "structures"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, tuple):
            return value
        names = [part.strip().lower().replace("_", "-") for part in str(value).split(",")]
        if names == [AUTO]:
            names = list(AUTO_NAMES)
        if AUTO in names:
            self.fail(f"{AUTO!r} takes no other names; remove them, or name every one", param, ctx)
        strange = [name for name in names if name not in STRUCTURE_NAMES]
        if strange:
            known = ", ".join((AUTO, *STRUCTURE_NAMES))
            self.fail(f"{strange[0]!r} is not one of {known}", param, ctx)
        return tuple(dict.fromkeys(name.replace("-", "_") for name in names))


structures_option = click.option(
    "--structures",
    type=StructureNames(),
    metavar="NAMES",
    help="Structures that may replace a layer, separated by commas: "
    f"{', '.join(STRUCTURE_NAMES)}, or auto for all but kronecker. By default only low-rank; each "
    "other one takes a few fits for each layer.",
)
