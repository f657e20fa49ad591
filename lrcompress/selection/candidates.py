"""The ways in which layers are fitted that a default run holds against each other.

All share the ranks that the profile's corrected loss curves give, except where an allocator is
named: the loss of truncating a layer, once measured, hardly depends on the metric of the fit, while
the outputs of the whole network do.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Candidate:
    """A metric for the fits and an allocator for the ranks."""

    name: str
    metric: str
    allocator: str
    last_resort: bool = False  # tried only where the network does not do what was predicted


CANDIDATES: tuple[Candidate, ...] = (
    Candidate("two-sided", "two-sided", "global"),
    Candidate("blended", "blended", "global"),
    Candidate("input-weighted", "input-weighted", "global"),
    Candidate("input-weighted, uniform", "input-weighted", "uniform"),
    Candidate("diagonal, uniform", "diagonal", "uniform", last_resort=True),
    Candidate("plain, uniform", "plain", "uniform", last_resort=True),
)
