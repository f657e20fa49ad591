"""Rows and verdicts as a reader sees them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from benchmarks.unseen_comparison.claims import Verdict
from benchmarks.unseen_comparison.row import Row

HEAD = (
    f"{'budget':>6s} {'method':14s} {'task':>7s} {'of dense':>8s} {'nats':>8s} {'kept':>6s} "
    f"{'predicted':>9s} {'calibr.':>9s} {'set aside':>9s} {'trust':5s} {'exit':>4s} {'s':>6s}  "
    "fitted in"
)


def heading(name: str) -> str:
    """Above the rows of a network."""
    return f"\n{name}\n{HEAD}"


def line(row: Row) -> str:
    """One row, and its error below it."""
    share = None if row.task is None else row.task / row.dense_task
    trust = {True: "yes", False: "no", None: "-"}[row.trusted]
    told = (
        f"{row.budget:5d}% {row.method:14s} {_shown(row.task, '.4f'):>7s} "
        f"{_shown(share, '.1%'):>8s} {_shown(row.nats, '.4f'):>8s} {_shown(row.kept, '.1%'):>6s} "
        f"{_shown(row.predicted, '.3g'):>9s} {_shown(row.on_calibration, '.3g'):>9s} "
        f"{_shown(row.on_set_aside, '.3g'):>9s} {trust:5s} {row.exit_code:4d} {row.seconds:6.0f}  "
        f"{row.fitted_in}"
    ).rstrip()
    return f"{told}\n       {row.error}" if row.error else told


def footing(rows: Sequence[Row], about: Mapping[str, str]) -> str:
    """Below the rows of a network: its metric, the dense one, what the command leaves alone."""
    first = rows[0]
    nats = "" if first.dense_nats is None else f", {first.dense_nats:.4f} nats"
    told = [
        f"task: {about['metric']}, on {about['evaluation']}; dense {first.dense_task:.4f}{nats}",
        f"budget: of the {about['scope']} parameters, calibrated on {about['calibration']}",
    ]
    for entry in next((row.left_alone for row in rows if row.left_alone), ()):
        count = f"{entry.count} {entry.kind}, {entry.params:,} parameters"
        told.append(f"left alone: {count}: {entry.reason}")
    return "\n".join(told)


def verdict_lines(verdict: Verdict) -> str:
    word = {True: "holds", False: "FAILS", None: "not judged"}[verdict.holds]
    if not verdict.required and verdict.holds is False:
        word = "does not hold"
    told = f"({verdict.letter}) {verdict.claim}: {word}, {verdict.judged} judged"
    return "\n".join([told, *(f"    {reason}" for reason in verdict.against)])


def _shown(value: float | None, how: str) -> str:
    return "-" if value is None else format(value, how)
