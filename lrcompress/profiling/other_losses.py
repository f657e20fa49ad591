"""What other weights lose in number formats, measured on the whole network."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from math import isfinite

from torch import nn

from lrcompress.errors import FitError
from lrcompress.network.held_out_divergence import HeldOutDivergence
from lrcompress.network.other_weights import (
    OTHER_FORMATS,
    bytes_in,
    other_weights,
    rounded_others,
)
from lrcompress.profiling.profile import OtherWeights


def measure_others(
    module: nn.Module, layers: Sequence[str], held_out: HeldOutDivergence
) -> OtherWeights | None:
    """Return the bytes and losses of the other weights; None if there are none.

    layers: those that a plan can change. The module is restored. A format that cannot hold the
    weights, or in which an output is not finite, is left out.
    """
    weights = other_weights(module, layers)
    if not weights:
        return None
    losses: dict[str, float] = {}
    for format in OTHER_FORMATS:
        if format == "fp32":
            losses[format] = 0.0
            continue
        with suppress(FitError), rounded_others(module, layers, format):
            losses[format] = held_out.divergence(module)
    known = {format: loss for format, loss in losses.items() if isfinite(loss)}
    return OtherWeights(
        names=tuple(weights),
        params=sum(weight.numel() for weight in weights.values()),
        bytes={format: bytes_in(format, weights) for format in known},
        losses=known,
    )
