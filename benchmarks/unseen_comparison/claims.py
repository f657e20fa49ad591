"""What the rows have to show. A claim is judged on the rows that there are, or not at all."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from benchmarks.unseen_comparison.row import DEFAULT, SINGLE, Row
from lrcompress.compression.doubts import NEGLIGIBLE
from lrcompress_cli.exit_codes import ExitCode

TOLERANCE = 0.02  # of the dense metric, below the best single metric
PLAIN = "plain"
RATIOS = (0.5, 2.0)  # of measured over predicted divergence
LARGEST_SILENT_LOSS = 0.1  # of the dense metric
REFUSALS = (ExitCode.BUDGET, ExitCode.ACCURACY)


@dataclass(frozen=True)
class Verdict:
    letter: str
    claim: str
    holds: bool | None  # None: no row to judge it on
    judged: int  # rows, or networks at a budget
    against: tuple[str, ...]  # a line for each that speaks against it
    required: bool = True

    @property
    def fails(self) -> bool:
        return self.required and self.holds is False


@dataclass(frozen=True)
class _Place:
    """All rows of one network at one budget, of which one is the default's."""

    default: Row
    singles: Mapping[str, Row]

    @property
    def best(self) -> Row | None:
        """The single metric that scores best; None if no network came out of any."""
        scored = [row for row in self.singles.values() if row.task is not None]
        return max(scored, key=_task, default=None)

    @property
    def is_refused(self) -> bool:
        """Whether nobody got a network, and the default run said why."""
        refused = self.default.task is None and self.default.exit_code in REFUSALS
        return refused and self.best is None


def judge(rows: Sequence[Row]) -> tuple[Verdict, ...]:
    places = list(_places(rows))
    return (
        _near_the_best(places),
        _above_the_best(places),
        _above_plain(places),
        _predicted(rows),
        _no_silent_loss(rows),
    )


def _near_the_best(places: Sequence[_Place]) -> Verdict:
    judged = [place for place in places if place.singles and not place.is_refused]
    against = []
    for place in judged:
        default, best = place.default, place.best
        if default.task is None:
            against.append(f"{_where(default)}: no network; {_why(default)}")
        elif best is not None and default.task < _task(best) - TOLERANCE * default.dense_task:
            against.append(_below(default, best))
    return _verdict(
        "a", f"default >= best single metric - {TOLERANCE:.0%} of dense", judged, against
    )


def _above_the_best(places: Sequence[_Place]) -> Verdict:
    judged = [place for place in places if place.singles and not place.is_refused]
    above = [
        place
        for place in judged
        if place.default.task is not None
        and (place.best is None or place.default.task > _task(place.best))
    ]
    against = tuple(_where(place.default) for place in judged if place not in above)
    claim = f"default above the best single metric on half of the rows ({len(above)} are)"
    holds = 2 * len(above) >= len(judged) if judged else None
    return Verdict("b", claim, holds, len(judged), against, required=False)


def _above_plain(places: Sequence[_Place]) -> Verdict:
    judged = [p for p in places if PLAIN in p.singles and p.singles[PLAIN].task is not None]
    against = []
    for place in judged:
        default, plain = place.default, place.singles[PLAIN]
        if default.task is None:
            against.append(f"{_where(default)}: no network; {_why(default)}")
        elif default.task < _task(plain):
            against.append(_below(default, plain))
    return _verdict("c", "default never below plain SVD", judged, against)


def _predicted(rows: Sequence[Row]) -> Verdict:
    """Judges predictions in the divergence's unit, unless both figures are negligible. They are of
    the plan without a refit."""
    low, high = RATIOS
    judged, against = [], []
    for row in rows:
        if row.predicted is None or row.on_set_aside is None:
            continue
        judged.append(row)
        measured = row.on_set_aside if row.unrefitted is None else row.unrefitted
        if row.doubts or max(row.predicted, measured) <= NEGLIGIBLE:
            continue
        ratio = measured / row.predicted if row.predicted > 0 else float("inf")
        if not low <= ratio <= high:
            against.append(
                f"{row.case}: {measured:.3g} measured, {row.predicted:.3g} predicted "
                f"({ratio:.2f} times), and no doubt"
            )
    claim = f"measured / predicted divergence on examples set aside in {low:g}-{high:g}, or a doubt"
    return _verdict("d", claim, judged, against)


def _no_silent_loss(rows: Sequence[Row]) -> Verdict:
    judged = [row for row in rows if row.exit_code == ExitCode.OK and row.trusted]
    against = []
    for row in judged:
        if row.task is None:
            against.append(f"{row.case}: no network that runs; {_why(row)}")
        elif row.task < (1 - LARGEST_SILENT_LOSS) * row.dense_task:
            against.append(f"{row.case}: {row.task:.4f}, dense {row.dense_task:.4f}")
    claim = f"no row with exit code 0, trusted, and more than {LARGEST_SILENT_LOSS:.0%} below dense"
    return _verdict("e", claim, judged, against)


def _verdict(letter: str, claim: str, judged: Sequence[object], against: list[str]) -> Verdict:
    holds = not against if judged else None
    return Verdict(letter, claim, holds, len(judged), tuple(against))


def _places(rows: Sequence[Row]) -> Iterator[_Place]:
    def key(row: Row) -> tuple[str, int]:
        return row.network, row.budget

    for _, group in groupby(sorted(rows, key=key), key=key):
        methods = {row.method: row for row in group}
        if DEFAULT in methods:
            singles = {name: methods[name] for name in SINGLE if name in methods}
            yield _Place(methods[DEFAULT], singles)


def _task(row: Row) -> float:
    assert row.task is not None
    return row.task


def _where(row: Row) -> str:
    return f"{row.network} {row.budget} %"


def _why(row: Row) -> str:
    return row.error or f"exit code {row.exit_code}"


def _below(default: Row, other: Row) -> str:
    gap = (_task(default) - _task(other)) / default.dense_task
    return (
        f"{_where(default)}: {_task(default):.4f}, {other.method} {_task(other):.4f} "
        f"({gap:+.1%} of dense)"
    )
