"""Calibration data by name, for references such as `adversarial.situations.data:NAME`."""

from __future__ import annotations

from collections.abc import Callable

from adversarial.situations import SITUATIONS
from lrcompress.network.batches import Batch

CALIBRATION_SEED = 0


def __getattr__(name: str) -> Callable[[], list[Batch]]:
    if name not in SITUATIONS:
        raise AttributeError(name)
    return lambda: SITUATIONS[name].batches(CALIBRATION_SEED)
