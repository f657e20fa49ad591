"""Sinks for the moments of a profile: memory by default, or a writer that the caller provides."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from lrcompress.metrics import LayerMoments, MomentStore


class MomentSink(Protocol):
    def add(self, name: str, input_group: str, moments: LayerMoments) -> None:
        """Add a layer's moments; the input moments may be those of its group's first layer."""
        ...

    def finish(self) -> MomentStore:
        """Return all moments that were added."""
        ...


class MemorySink:
    """Keeps all moments in memory; layers of one group share the same tensors."""

    def __init__(self) -> None:
        self._layers: dict[str, LayerMoments] = {}
        self._groups: dict[str, LayerMoments] = {}

    def add(self, name: str, input_group: str, moments: LayerMoments) -> None:
        first = self._groups.setdefault(input_group, moments)
        self._layers[name] = replace(first, sensitivity=moments.sensitivity)

    def finish(self) -> MomentStore:
        return self._layers
