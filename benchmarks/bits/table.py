"""The rows of a network and the verdicts, as text."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.bits.fidelity import DECIDES
from benchmarks.bits.must_reach import Verdict
from benchmarks.bits.results import Results
from benchmarks.bits.row import Row, Timing

BETTER = {True: "ours better", False: "OURS WORSE", None: "-"}


def show(network: str, results: Results) -> None:
    """Print the files of a network, the largest first, and how ours compares at no more bytes."""
    note = results.networks[network]
    measure, _ = DECIDES[note.kind]
    print(f"\n{network}: {note.calibration}; judged on {', '.join(note.evaluations)}")
    heads = ("method", "budget", "bytes", "%", *_measures(note.scores), "made s", "1x t1", "8x t1")
    print("  ".join([f"{heads[0]:24}", f"{heads[1]:16}", *(f"{h:>11}" for h in heads[2:])]))
    verdicts = {
        c.baseline: c.better for c in results.comparisons(network) if c.at_no_more == "bytes"
    }
    rows = [row for row in results.of(network) if row.fidelity]
    for row in sorted(rows, key=lambda row: -(row.bytes or 0)):
        scores = [
            f"{value:11.4f}"
            for evaluation in note.evaluations
            for value in row.fidelity[evaluation].values()
        ]
        size = row.bytes or 0
        cells = [f"{size:>11,}", f"{100 * size / note.bytes:>11.1f}", *scores]
        cells += [f"{row.seconds:>11.1f}", *(_ratio(row.timing(batch, 1)) for batch in (1, 8))]
        verdict = BETTER[verdicts.get(row.method)] if row.group == "theirs" else ""
        print("  ".join([f"{row.method:24}", f"{row.budget:16}", *cells, verdict]).rstrip())
    for row in results.of(network):
        if row.error:
            print(f"{row.cell}: no figure, {row.error[:150]}")
    print(f"(better or worse by {measure}, {note.evaluations[0]})")


def show_verdicts(verdicts: Sequence[Verdict]) -> None:
    """Print each claim and what is measured for it."""
    print()
    for verdict in verdicts:
        word = {True: "reached", False: "MISSED", None: "no row"}[verdict.reached]
        print(f"{word:8} {verdict.claim}: {verdict.found}")


def _measures(scores: object) -> list[str]:
    assert isinstance(scores, dict)
    return [name for evaluation in scores.values() for name in evaluation]


def _ratio(timing: Timing | None) -> str:
    return f"{'-' if timing is None else f'{timing.ratio:.2f}':>11}"


__all__ = ["Row", "show", "show_verdicts"]
