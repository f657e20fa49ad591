"""Structures that can replace a layer. Each structure is one file and one row of STRUCTURES."""

from __future__ import annotations

from lrcompress.structures.blast import Blast
from lrcompress.structures.block_diagonal import BlockDiagonal
from lrcompress.structures.cp import CP
from lrcompress.structures.dense import Dense
from lrcompress.structures.interpolative import Interpolative
from lrcompress.structures.kronecker import Kronecker
from lrcompress.structures.low_rank import LowRank
from lrcompress.structures.monarch import Monarch
from lrcompress.structures.quantised import Quantised, in_format
from lrcompress.structures.spatial import SpatialLowRank
from lrcompress.structures.structure import Factors, Structure
from lrcompress.structures.tensor_train import TensorTrain
from lrcompress.structures.tucker2 import Tucker2

STRUCTURES: dict[str, type[Structure]] = {
    "dense": Dense,
    "low_rank": LowRank,
    "blast": Blast,
    "cp": CP,
    "spatial": SpatialLowRank,
    "tucker2": Tucker2,
    "tensor_train": TensorTrain,
    "interpolative": Interpolative,
    "block_diagonal": BlockDiagonal,
    "monarch": Monarch,
    "kronecker": Kronecker,
}

# The structures that `--structures auto` tries.
AUTO: tuple[str, ...] = tuple(
    name for name, it in STRUCTURES.items() if it.tried_by_default and name != "dense"
)

__all__ = [
    "AUTO",
    "CP",
    "STRUCTURES",
    "Blast",
    "BlockDiagonal",
    "Dense",
    "Factors",
    "Interpolative",
    "Kronecker",
    "LowRank",
    "Monarch",
    "Quantised",
    "SpatialLowRank",
    "Structure",
    "TensorTrain",
    "Tucker2",
    "in_format",
]
