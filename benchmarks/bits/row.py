"""One file of the benchmark: how it was made, its size, its fidelity and its latency."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

Group = Literal["theirs", "ours", "low rank"]


class Cell(NamedTuple):
    network: str
    method: str
    budget: str  # "" for a baseline, which has none

    def __str__(self) -> str:
        return " ".join(filter(None, self))


@dataclass(frozen=True)
class Timing:
    """Latency over the dense fp32 graph's, in paired runs; `low` and `high`: 95 % bootstrap."""

    batch: int
    length: int | None  # None where inputs have no free length
    threads: int
    ratio: float
    low: float
    high: float
    dense_ms: float


@dataclass(frozen=True)
class Row:
    """`error` is why there is no file or no fidelity; then `fidelity` is empty.

    bytes: of the ONNX file with its external data
    layer_bytes: of the constants of the network's layers (Subject.layers), None without them
    seconds: of the method, without the profile's `profile_seconds`
    fidelity: evaluation set → measure → value
    code: digest of the package's source that made it, "" for baselines
    """

    network: str
    method: str
    budget: str
    group: Group
    bytes: int | None
    layer_bytes: int | None
    seconds: float
    profile_seconds: float
    fidelity: Mapping[str, Mapping[str, float]]
    error: str
    command: str
    code: str
    latency: tuple[Timing, ...] = field(default=())

    @property
    def cell(self) -> Cell:
        return Cell(self.network, self.method, self.budget)

    def timing(self, batch: int, threads: int) -> Timing | None:
        found = (t for t in self.latency if (t.batch, t.threads) == (batch, threads))
        return next(found, None)
