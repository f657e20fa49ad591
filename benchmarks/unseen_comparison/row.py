"""One network compressed once, in one way: what the command said and what the result is worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, NamedTuple

from benchmarks.unseen_comparison.outcome import Outcome
from benchmarks.unseen_networks.score import Score
from lrcompress.compression.doubts import SET_ASIDE
from lrcompress.metrics import METRICS

DEFAULT = "default"  # no --metric
SINGLE = ("plain", "input-weighted", "diagonal", "two-sided")  # --metric NAME
METHODS = (DEFAULT, *SINGLE)


class Case(NamedTuple):
    network: str
    budget: int  # percent of the parameters
    method: str

    def __str__(self) -> str:
        return f"{self.network} {self.budget} % {self.method}"


@dataclass(frozen=True)
class LeftAlone:
    kind: str
    reason: str
    count: int
    params: int


@dataclass(frozen=True)
class Row:
    """`task` is the network's own metric, higher is better; None where no network came out.

    Divergences are per example, in the unit of the network's objective; None where there are none.
    """

    network: str
    budget: int
    method: str
    dense_task: float
    task: float | None
    dense_nats: float | None  # None for a network that classifies nothing
    nats: float | None
    predicted: float | None  # None in a metric whose unit is not the divergence's
    on_calibration: float | None
    on_set_aside: float | None
    trusted: bool | None
    doubts: tuple[str, ...]
    first_warning: str
    exit_code: int
    error: str
    seconds: float  # of the command
    profile_seconds: float  # of the profile that it was given; 0 where it made its own
    dense_params: int | None
    params: int | None
    left_alone: tuple[LeftAlone, ...]
    fitted_in: str  # the metric of the fits, which a default run chooses
    command: str
    code: str  # see `code_digest`
    unrefitted: float | None = None  # on the set aside, before a refit that changed something

    @property
    def case(self) -> Case:
        return Case(self.network, self.budget, self.method)

    @property
    def kept(self) -> float | None:
        """Share of all parameters."""
        if self.params is None or not self.dense_params:
            return None
        return self.params / self.dense_params


def row_of(
    case: Case,
    outcome: Outcome,
    *,
    dense: Score,
    made: Score | None,
    error: str = "",
    profile_seconds: float = 0.0,
    code: str = "",
) -> Row:
    """`made`: the score of what the command left behind; `error`: why there is none."""
    said, report = outcome.record, outcome.report
    fitted_in = str(said.get("metric", ""))
    measured = {x["where"]: x for x in said.get("divergences", ())}
    calibration, aside = measured.get("calibration", {}), measured.get(SET_ASIDE, {})
    comparable = fitted_in in METRICS and _in_divergence(case.method, fitted_in)
    predicted = (aside or calibration).get("predicted") if comparable else None
    return Row(
        network=case.network,
        budget=case.budget,
        method=case.method,
        dense_task=dense.metric,
        task=None if made is None else _finite(made.metric),
        dense_nats=dense.nats,
        nats=None if made is None else _finite(made.nats),
        predicted=_finite(predicted),
        on_calibration=_finite(calibration.get("measured")),
        on_set_aside=_finite(aside.get("measured")),
        trusted=said.get("trusted"),
        doubts=tuple(said.get("doubts", ())),
        first_warning=next(iter(said.get("warnings", ())), ""),
        exit_code=outcome.exit_code,
        error=error or outcome.error,
        seconds=round(outcome.seconds, 1),
        profile_seconds=round(profile_seconds, 1),
        dense_params=said.get("dense", {}).get("params"),
        params=said.get("compressed", {}).get("params"),
        left_alone=left_alone_of(report.get("left_alone", ())),
        fitted_in=fitted_in,
        command=outcome.command,
        code=code,
        unrefitted=_finite(aside.get("without_refit")),
    )


def left_alone_of(entries: Sequence[Mapping[str, Any]]) -> tuple[LeftAlone, ...]:
    """Those of one kind and reason together, the most parameters first."""
    found: dict[tuple[str, str], LeftAlone] = {}
    for entry in entries:
        key = entry["kind"], entry["reason"]
        known = found.get(key, LeftAlone(*key, 0, 0))
        found[key] = LeftAlone(*key, known.count + 1, known.params + entry["params"])
    return tuple(sorted(found.values(), key=lambda x: (-x.params, x.kind, x.reason)))


def _in_divergence(method: str, fitted_in: str) -> bool:
    """A default run predicts by the two-sided curves whatever it fits in."""
    return method == DEFAULT or METRICS[fitted_in].needs_outputs


def _finite(value: float | None) -> float | None:
    """A result file holds no NaN."""
    return value if value is not None and isfinite(value) else None
