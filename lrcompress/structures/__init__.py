"""What can stand in a layer's place. A structure is one file and one row of STRUCTURES."""

from __future__ import annotations

from lrcompress.structures.base import Factors, Structure
from lrcompress.structures.dense import Dense
from lrcompress.structures.low_rank import LowRank

STRUCTURES: dict[str, type[Structure]] = {
    "dense": Dense,
    "low_rank": LowRank,
}

__all__ = ["STRUCTURES", "Dense", "Factors", "LowRank", "Structure"]
