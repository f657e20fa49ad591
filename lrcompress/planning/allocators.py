"""The allocators, which distribute a budget over the layers. Each is one file and one row here."""

from __future__ import annotations

from lrcompress.planning.energy import energy
from lrcompress.planning.global_allocator import allocate_globally
from lrcompress.planning.problem import Allocation, Allocator, Problem, pose
from lrcompress.planning.scaled_stable_rank import scaled_stable_rank
from lrcompress.planning.uniform import uniform

ALLOCATORS: dict[str, Allocator] = {
    "global": allocate_globally,
    "uniform": uniform,
    "energy": energy,
    "scaled-stable-rank": scaled_stable_rank,
}

__all__ = ["ALLOCATORS", "Allocation", "Allocator", "Problem", "pose"]
