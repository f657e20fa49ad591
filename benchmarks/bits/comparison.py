"""Every baseline's file against the best of ours that is no larger, or no slower."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from benchmarks.bits.fidelity import DECIDES
from benchmarks.bits.row import Row

NOISE = 1.02  # of a latency ratio: a file of ours may be measured this much slower


@dataclass(frozen=True)
class Comparison:
    """`better` is None where none of ours is as small, or as fast, as the baseline's file.

    score, our_score: what DECIDES for this kind of network, on its first evaluation set
    """

    network: str
    baseline: str
    at_no_more: Literal["bytes", "latency"]
    cost: float
    score: float
    ours: str  # the budget
    our_cost: float | None
    our_score: float | None
    better: bool | None


def compare(rows: Sequence[Row], kind: str, evaluation: str) -> Iterable[Comparison]:
    """Compare the rows of one network."""
    measure, direction = DECIDES[kind]
    sign = 1 if direction == "higher" else -1
    judged = [row for row in rows if evaluation in row.fidelity]
    ours = [row for row in judged if row.group == "ours"]
    costs: tuple[tuple[Literal["bytes", "latency"], Callable[[Row], float | None], float], ...] = (
        ("bytes", lambda row: row.bytes, 1.0),
        ("latency", _latency, NOISE),
    )

    def score_of(row: Row) -> float:
        return row.fidelity[evaluation][measure]

    for name, cost_of, slack in costs:
        priced = [(row, cost) for row in ours if (cost := cost_of(row)) is not None]
        for row in judged:
            cost = cost_of(row)
            if row.group != "theirs" or cost is None:
                continue
            score = score_of(row)
            within = [pair for pair in priced if pair[1] <= cost * slack]
            best = max(
                within, key=lambda p: sign * p[0].fidelity[evaluation][measure], default=None
            )
            found = None if best is None else best[0].fidelity[evaluation][measure]
            yield Comparison(
                network=row.network,
                baseline=row.method,
                at_no_more=name,
                cost=cost,
                score=score,
                ours="" if best is None else best[0].budget,
                our_cost=None if best is None else best[1],
                our_score=found,
                better=None if found is None else sign * found >= sign * score,
            )


def _latency(row: Row) -> float | None:
    """Of one example on one thread."""
    found = row.timing(batch=1, threads=1)
    return None if found is None else found.ratio
