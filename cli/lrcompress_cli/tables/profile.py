"""A table of the profile, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

from lrcompress.messages import printable
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress_cli.tables.left_alone import LeftAloneTable
from lrcompress_cli.tables.names import cell, fitted
from lrcompress_cli.tables.numbers import count, flops, real, share, size

WIDE = 110  # minimum width for all measures
FIGURES, FIGURES_WIDE = 48, 60  # width of the measures


class ProfileTable:
    """A rich table. Narrow terminals omit some measures; the report has them all."""

    def __init__(self, profile: Profile) -> None:
        self._profile = profile

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        profile = self._profile
        wide = options.max_width >= WIDE
        table = Table(box=None, pad_edge=False, header_style="bold", collapse_padding=True)
        table.add_column("layer", overflow="fold", min_width=16)
        headings = _HEADINGS if wide else [h for h in _HEADINGS if h not in _WIDE_ONLY]
        for heading in headings:
            table.add_column(heading, justify="right", no_wrap=True)
        room = options.max_width - (FIGURES_WIDE if wide else FIGURES)
        for layer in profile.layers:
            cells = _cells(layer, profile.metric)
            table.add_row(cell(fitted(layer.name, room)), *(cells[heading] for heading in headings))
        yield _head(profile)
        yield table
        yield Text("")
        yield _legend(profile, headings)
        if profile.left_alone:
            yield Text("")
            yield LeftAloneTable(profile.left_alone, profile.total_params)


_HEADINGS = (
    "shape", "stable", "effect.", "numer.", "e90", "e99", "MP", "even", "sensit.",
)  # fmt: skip
_WIDE_ONLY = ("numer.", "MP")


def _cells(layer: LayerProfile, metric: str) -> dict[str, str]:
    spec, measures = layer.spec, layer.measures
    groups = f"{spec.groups}*" if spec.groups > 1 else ""
    return {
        "shape": f"{groups}{spec.out_features}x{spec.in_features}",
        "stable": f"{measures.stable_rank:.1f}",
        "effect.": f"{measures.effective_rank:.0f}",
        "numer.": str(measures.numerical_rank),
        "e90": str(measures.e90),
        "e99": str(measures.e99),
        "MP": str(measures.above_noise),
        "even": str(spec.break_even_rank),
        "sensit.": real(layer.loss_of_removal(metric)),
    }


def _head(profile: Profile) -> Text:
    compressible = sum(layer.spec.weight_params for layer in profile.layers)
    data = "no data: the plain metric"
    if profile.examples:
        data = f"{profile.examples} examples"
        data += f", {profile.tokens} tokens" if profile.tokens else ""
    example = "example" if profile.examples else "row"  # without data, lengths are unknown
    readout = () if profile.readout is None else profile.readout.lines
    taken = "".join(f"{printable(line)}\n" for line in readout)
    return Text(
        f"{count(profile.total_params)} parameters ({share(compressible, profile.total_params)} "
        f"in {len(profile.layers)} compressible layers), {size(profile.total_bytes)}, "
        f"{flops(profile.total_flops_per_example)} per {example}; {data}\n{taken}"
    )


_MEANINGS = {
    "stable": "stable rank",
    "effect.": "effective rank",
    "numer.": "numerical rank",
    "e90": "directions with 90 % of the energy",
    "e99": "directions with 99 % of the energy",
    "MP": "directions above the Marchenko-Pastur noise edge",
    "even": "break-even rank: up to it two factors are smaller than the weight",
    "sensit.": "loss of a zero weight ({unit})",
}


def _legend(profile: Profile, headings: Sequence[str]) -> Table:
    unit = "plain" if profile.objective == "none" else f"{profile.metric}, {profile.objective}"
    table = Table(box=None, pad_edge=False, show_header=False, collapse_padding=True, style="dim")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for heading in headings:
        if heading in _MEANINGS:
            table.add_row(heading, cell(_MEANINGS[heading].format(unit=unit)))
    return table
