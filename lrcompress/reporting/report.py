"""The data of a report. report.json contains exactly this; the page is drawn from it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from lrcompress.compression.sweep import SweepPoint
from lrcompress.errors import DataError
from lrcompress.json_dataclasses import from_json, parse_object, to_json
from lrcompress.selection.rounds import Tried
from lrcompress.tuning.report import TuneReport

SCHEMA_VERSION = 1
IN_NATS = ("kl", "probabilities", "bernoulli", "bernoulli-probabilities")


@dataclass(frozen=True)
class Cost:
    params: int
    bytes: int  # on disk
    flops_per_example: float
    latency_ms: float | None = None  # known after `bench`


@dataclass(frozen=True)
class Spectrum:
    """Singular values in one metric, thinned if there are many: `values[k]` is value `index[k]`."""

    metric: str
    index: tuple[int, ...]  # from 1
    values: tuple[float, ...]


@dataclass(frozen=True)
class LayerReport:
    name: str
    kind: str
    out_features: int  # per group, as is in_features
    in_features: int
    groups: int
    params: int
    stable_rank: float
    effective_rank: float
    numerical_rank: int
    e90: int
    e99: int
    above_noise: int
    break_even_rank: int
    sensitivity: float  # loss of a zero weight, in the plan's metric
    spectra: tuple[Spectrum, ...]
    structure: str = ""  # as a person reads it; "" before there is a plan
    rank: int | None = None  # for low rank only
    params_kept: int | None = None
    predicted_loss: float | None = None
    saved: float | None = None  # share of the loss, against low rank with as many parameters
    note: str = ""
    format: str = ""  # number formats of the factors; "" as the export stores them
    bytes_kept: float | None = None  # share of the dense weight's bytes in the export's precision


@dataclass(frozen=True)
class Divergence:
    """Mean output divergence per example, summed over its positions, in the objective's unit."""

    where: str  # the data, such as "calibration"
    predicted: float | None  # without a refit; None: the metric's losses are in another unit
    measured: float
    without_refit: float | None = None  # measured before the refit; None: no refit changed anything
    positions: float = 1.0  # counted positions per example, on average


@dataclass(frozen=True)
class CheckReport:
    name: str
    kind: str
    passed: bool | None  # None: it could not run, and detail says why
    detail: str


@dataclass(frozen=True)
class LeftAloneReport:
    name: str
    kind: str
    params: int
    reason: str


@dataclass(frozen=True)
class StageTime:
    name: str
    seconds: float  # in the run that did the work; 0 if that run left no report
    reused: bool  # taken from an earlier run


@dataclass(frozen=True)
class Output:
    name: str  # relative to the run folder
    bytes: int


@dataclass(frozen=True)
class Report:
    model: str
    command: str
    metric: str
    objective: str
    examples: int
    tokens: int  # 0 if the data is not text
    before: Cost
    layers: tuple[LayerReport, ...]
    left_alone: tuple[LeftAloneReport, ...]
    environment: dict[str, str]
    after: Cost | None = None  # None for a profile alone
    budget: str = ""
    allocator: str = ""
    optimality_gap: float | None = None
    divergences: tuple[Divergence, ...] = ()
    sweep: tuple[SweepPoint, ...] = ()  # the same at other budgets, if requested
    tried: tuple[Tried, ...] = ()  # plans that were carried out to select one
    judging_examples: int = 0  # held-out examples on which they were measured
    doubts: tuple[str, ...] = ()  # why the result may be wrong, and what to do
    severe_doubts: tuple[str, ...] = ()  # the doubts that show a bad result
    tuning: TuneReport | None = None
    readout: tuple[str, ...] = ()  # the measured outputs, how each is read and why; one line each
    fidelity: dict[str, float] | None = None  # measure → value, dense against compressed
    checks: tuple[CheckReport, ...] = ()
    stages: tuple[StageTime, ...] = ()
    files: tuple[Output, ...] = ()
    axes: tuple[str, ...] = ()  # for each input of the graph, which axes are dynamic, which fixed
    warnings: tuple[str, ...] = ()
    schema_version: int = SCHEMA_VERSION

    @property
    def left_alone_share(self) -> float:
        """Share of the dense model's parameters in layers left alone."""
        return sum(x.params for x in self.left_alone) / max(self.before.params, 1)

    @property
    def unit(self) -> str:
        """The unit of the divergences, in words."""
        words = [f"{self.objective} divergence per example"]
        if self.objective in IN_NATS:
            words.append("in nats")
        positions = max((row.positions for row in self.divergences), default=1.0)
        if positions > 1 and self.objective != "weighted-sum":
            words.append(f"summed over its positions ({positions:.3g} on average)")
        return ", ".join(words)

    @property
    def trusted(self) -> bool | None:
        """Whether the network met the prediction on held-out examples; None if there were none."""
        return not self.doubts if self.divergences else None

    @property
    def verified(self) -> bool:
        return bool(self.checks) and all(check.passed is not False for check in self.checks)

    def to_json(self) -> str:
        return json.dumps(to_json(self), indent=1, allow_nan=False)

    @classmethod
    def from_json(cls, text: str, source: Path) -> Report:
        """Parse a report. Raises DataError, naming the field, if it is not one of this version."""
        data = parse_object(text, str(source), DataError)
        if data.get("schema_version") != SCHEMA_VERSION:
            raise DataError(f"{source}: not a report of this version; rerun the command")
        return from_json(cls, data, str(source), DataError)
