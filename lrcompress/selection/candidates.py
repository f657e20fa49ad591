"""The metrics and allocators that a default run compares.

All use the ranks that follow from the profile's corrected loss curves, unless an allocator is
named. The measured loss of truncating a layer hardly depends on the metric of the fit, but the
output of the whole network does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A metric for the fits and an allocator for the ranks."""

    name: str
    metric: str
    allocator: str
    last_resort: bool = False  # tried only if the prediction does not hold


CANDIDATES: tuple[Candidate, ...] = (
    Candidate("two-sided", "two-sided", "global"),
    Candidate("blended", "blended", "global"),
    Candidate("input-weighted", "input-weighted", "global"),
    Candidate("input-weighted, uniform", "input-weighted", "uniform"),
    Candidate("diagonal, uniform", "diagonal", "uniform", last_resort=True),
    Candidate("plain, uniform", "plain", "uniform", last_resort=True),
)
