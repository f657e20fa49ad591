"""The allocators, which distribute a budget over the layers: one row each."""

from __future__ import annotations

from collections.abc import Callable

from lrcompress.planning.global_allocator import allocate_globally
from lrcompress.planning.problem import Allocation, Problem
from lrcompress.planning.threshold_allocators import energy, scaled_stable_rank, uniform

# Each takes a feasible problem (smallest_cost <= room) and never exceeds its room
ALLOCATORS: dict[str, Callable[[Problem], Allocation]] = {
    "global": allocate_globally,
    "uniform": uniform,
    "energy": energy,
    "scaled-stable-rank": scaled_stable_rank,
}
