"""Layers whose values a number format cannot hold, as the profile found when it rounded them."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from lrcompress.errors import PlanError
from lrcompress.number_formats import parse_format
from lrcompress.profiling.profile import LayerProfile, Profile
from lrcompress.structures import Dense, Quantised, Structure


def out_of_range(layer: LayerProfile, metric: str, formats: Collection[str]) -> list[str]:
    """Return the formats that the layer's values are too large or too small for.

    formats: those that were measured. The profile has no loss of the dense weight in a format that
    the layer takes only if its values are beyond it.
    """
    if metric != layer.curves_metric:
        return []
    measured = {curve[0].structure for curve in layer.curves}
    asked = {text: Quantised(Dense(), (parse_format(text),)) for text in formats}
    return [
        text
        for text, structure in asked.items()
        if structure not in measured and _takes(layer, structure)
    ]


def beyond(formats: Sequence[str]) -> str:
    return f"too large or too small for {', '.join(formats)}, whose scales or values are float16"


def check_range(profile: Profile, metric: str, structures: Mapping[str, Structure]) -> None:
    """Raise PlanError, naming the layer, for a dense weight in a format that cannot hold it."""
    for layer in profile.layers:
        asked = structures[layer.name]
        if not isinstance(asked, Quantised) or not isinstance(asked.structure, Dense):
            continue
        if asked.format_text not in profile.formats:
            continue  # not tried: compress does
        outside = out_of_range(layer, metric, [asked.format_text])
        if outside:
            raise PlanError(
                f"{layer.name}: its values are {beyond(outside)}; use bf16, or remove its format"
            )


def _takes(layer: LayerProfile, structure: Quantised) -> bool:
    try:
        structure.check(layer.spec)
    except PlanError:
        return False
    return True
