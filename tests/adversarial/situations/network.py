"""Factories by name, for references such as `adversarial.situations.network:NAME`."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from adversarial.situations import SITUATIONS
from adversarial.situations.situation import low_rank_


def __getattr__(name: str) -> Callable[[], nn.Module]:
    if name not in SITUATIONS:
        raise AttributeError(name)
    return lambda: low_rank_(SITUATIONS[name].make())
