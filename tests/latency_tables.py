"""Small tables of latencies."""

from __future__ import annotations

from dataclasses import replace

from lrcompress.layers import LayerSpec
from lrcompress.planning.latency import (
    LatencyTable,
    Measurement,
)
from lrcompress.structures import Blast

SPEC = LayerSpec("layer", "linear", 64, 64, 1, bias=True)


BLAST = Blast(16, blocks=4)


KEPT = BLAST.weight_params(SPEC) / SPEC.weight_params


def measurement(form: str, ratio: float, **changes: object) -> Measurement:
    base = Measurement("cpu", "blast", 4, form, 64, 64, KEPT, 128, ratio)
    return replace(base, **changes)  # type: ignore[arg-type]


def table(*measurements: Measurement) -> LatencyTable:
    return LatencyTable(measurements)
