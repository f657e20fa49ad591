"""BLAST: blocks of equal rank whose factors are shared along rows and columns of blocks.

W_ij = U_i diag(s_ij) V_j^T over a grid of blocks (Lee, Kwon, Qu, Kim, NeurIPS 2024). Special cases
are low rank (s = 1), block-diagonal and Monarch-like matrices.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor, nn

from lrcompress.errors import PlanError
from lrcompress.layers import Kind, LayerSpec
from lrcompress.structures.blast_fit.factors import BlastFactors, block_length
from lrcompress.structures.blast_fit.weighted import FULL, QUICK, fit_weighted
from lrcompress.structures.blast_module import BlastLinear
from lrcompress.structures.structure import (
    LINEAR_KINDS,
    Factors,
    FitTask,
    Place,
    Structure,
    check_size,
)

_FAMILIES = (4, 8)  # numbers of blocks
_KEPT = (0.25, 0.4, 0.6, 0.85)  # shares of the dense weight's parameters
_SMALLEST_BLOCK = 16  # in smaller blocks s is about as large as U and V, and little is shared


@dataclass(frozen=True)
class Blast(Structure):
    """A grid of `blocks` rows and `blocks_in` columns of blocks (0: as many as rows).

    Sizes that the blocks do not divide are padded. The padding is stored and counted.
    """

    rank: int
    blocks: int = 4
    blocks_in: int = 0
    type_name: ClassVar[str] = "blast"
    kinds: ClassVar[frozenset[Kind]] = LINEAR_KINDS

    @property
    def grid(self) -> tuple[int, int]:
        return self.blocks, self.blocks_in or self.blocks

    def check_sizes(self, spec: LayerSpec) -> None:
        m, n = spec.out_features, spec.in_features
        if spec.groups != 1 or spec.tied:
            raise PlanError(f"{spec.name}: blast takes one weight of one layer; use low_rank")
        check_size(spec, "rank", self.rank, min(m, n))
        for blocks, field, size in zip(self.grid, ("blocks", "blocks_in"), (m, n), strict=True):
            if not 2 <= blocks <= size:
                raise PlanError(
                    f"{spec.name}: {field} {blocks} is not between 2 and {size} "
                    f"(the weight is {m} x {n}); edit it, or use low_rank"
                )

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        b_out, b_in = self.grid
        p, q = block_length(spec.out_features, b_out), block_length(spec.in_features, b_in)
        shapes = {"left": (b_out, p), "diag": (b_out, b_in), "right": (b_in, q)}
        return {name: (spec.groups, *shape, self.rank) for name, shape in shapes.items()}

    def places(self, spec: LayerSpec) -> Mapping[str, Place]:
        return {name: Place(name) for name in ("left", "diag", "right")}

    def _fit(self, task: FitTask) -> Factors:
        start = None if task.start is None else BlastFactors(**task.start)
        if start is not None and start.diag.shape[1:3] != self.grid:
            start = None
        effort = QUICK if task.quick else FULL
        rank, grid = self.rank, self.grid
        return fit_weighted(
            task.weight, task.whitening, rank=rank, grid=grid, effort=effort, start=start
        )._asdict()

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        return BlastFactors(**factors).dense(spec.out_features, spec.in_features)

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        sizes = spec.out_features, spec.in_features
        built = BlastLinear.like(layer, BlastFactors(**factors), sizes, bias)
        return built.train(layer.training)

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        if spec.kind not in cls.kinds or spec.tied:
            return ()
        m, n = spec.out_features, spec.in_features
        return tuple(
            tuple(cls(max(1, int(kept * m * n / (m + n + b * b))), b) for kept in _KEPT)
            for b in _FAMILIES
            if b * _SMALLEST_BLOCK <= min(m, n)
        )
