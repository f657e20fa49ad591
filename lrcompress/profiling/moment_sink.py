"""Where the moments of a profile go: memory by default, the disk if the caller brings a writer."""

from __future__ import annotations

from dataclasses import replace
from typing import Protocol

from lrcompress.metrics import LayerMoments, MomentStore


class MomentSink(Protocol):
    def add(self, name: str, input_group: str, moments: LayerMoments) -> None:
        """Take one layer's moments; those of its input group may be taken from the first layer."""
        ...

    def finish(self) -> MomentStore:
        """All that was added."""
        ...


class MemorySink:
    """Keeps everything; layers of one group share the very tensors."""

    def __init__(self) -> None:
        self._layers: dict[str, LayerMoments] = {}
        self._groups: dict[str, LayerMoments] = {}

    def add(self, name: str, input_group: str, moments: LayerMoments) -> None:
        first = self._groups.setdefault(input_group, moments)
        self._layers[name] = replace(first, sensitivity=moments.sensitivity)

    def finish(self) -> MomentStore:
        return self._layers
