"""Settings and results of a benchmark."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrcompress.export.session import ProviderName
from lrcompress.json_dataclasses import to_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class BenchTarget:
    name: str
    path: Path


@dataclass(frozen=True)
class BenchSettings:
    batches: tuple[int, ...] | None = None  # None: 1 and 8, or the nearest that the graphs accept
    lengths: tuple[int, ...] | None = None  # None: 128 likewise; unused if no length is free
    provider: ProviderName = "cpu"
    runs: int = 30
    warmup: int = 5
    threads: int | None = None  # per operator; None leaves it to ONNX Runtime
    measure_memory: bool = True
    seed: int = 0
    cpu_time: bool = False  # where one thread of the CPU does all the work; see clock_for


@dataclass(frozen=True)
class Latency:
    target: str
    batch: int
    length: int | None
    p50_ms: float
    p90_ms: float
    rows_per_s: float  # at the median; BenchReport.row says what a row is


@dataclass(frozen=True)
class Ratio:
    """Median latency of `target` over that of `reference`, with its 95 % bootstrap interval."""

    target: str
    reference: str
    batch: int
    length: int | None
    latency_ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Footprint:
    target: str
    path: str
    file_bytes: int  # including external data
    peak_resident_bytes: int | None  # above the interpreter with onnxruntime; for the largest input
    peak_device_bytes: int | None


@dataclass(frozen=True)
class BenchReport:
    provider: ProviderName
    execution_provider: str
    device: str
    onnxruntime: str
    threads: int | None
    runs: int
    row: str  # unit of rows_per_s: "token" or "example"
    latencies: tuple[Latency, ...]
    ratios: tuple[Ratio, ...]  # each other target against the first
    footprints: tuple[Footprint, ...]
    schema_version: int = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        document: dict[str, Any] = to_json(self)
        return document
