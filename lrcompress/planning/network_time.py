"""The measured time of a dense network: of each layer's products, and of all the rest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite

from lrcompress.errors import PlanError
from lrcompress.structures import Structure


@dataclass(frozen=True)
class NetworkTime:
    """Times of one call of the dense network, and what measured plans say of the table.

    correction: factor on the table's ratios, so that a whole plan takes the measured time.
    plan_ratio: latency of the plan with the structures of `plan_digest`, over the dense latency.
    """

    layers_ms: Mapping[str, float] = field(default_factory=dict)  # of each layer's products
    rest_ms: float = 0.0
    measured_at: str = ""  # shapes of the inputs, provider, threads
    correction: float = 1.0
    plan_ratio: float | None = None
    plan_digest: str = ""

    def __post_init__(self) -> None:
        times = {**self.layers_ms, "the rest": self.rest_ms}
        for name, time in times.items():
            if not (isfinite(time) and time >= 0):
                raise PlanError(f"network_time: the time of {name} is {time}; measure it again")
        if not self.total_ms > 0:
            raise PlanError("network_time: the network takes no time; measure it again")
        if not (isfinite(self.correction) and self.correction > 0):
            raise PlanError(
                f"network_time: the correction must be positive, not {self.correction}; remove it"
            )

    @property
    def total_ms(self) -> float:
        return sum(self.layers_ms.values()) + self.rest_ms

    def share(self, layer: str) -> float:
        """Return the layer's share of the network's time; 0 for a layer that takes none."""
        return self.layers_ms.get(layer, 0.0) / self.total_ms

    @property
    def rest_share(self) -> float:
        return self.rest_ms / self.total_ms

    def measured(self, structures: Mapping[str, Structure]) -> float | None:
        """Return the measured latency over dense of a plan; None if another one was measured."""
        return self.plan_ratio if self.plan_digest == structures_digest(structures) else None


def structures_digest(structures: Mapping[str, Structure]) -> str:
    """Return a sha256 of a plan's structures; reasons for dense layers do not count."""
    digest = hashlib.sha256()
    for name, structure in sorted(structures.items()):
        text = "dense" if structure.type_name == "dense" else repr(structure)
        digest.update(f"{name}\0{text}\0".encode())
    return digest.hexdigest()
