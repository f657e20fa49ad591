"""A sum of Kronecker products.

W = sum_k A_k (x) B_k;  A: (K, m1, n1)  B: (K, m2, n2)

If W is rearranged so that each block is a row, the sum is a matrix of rank K (Van Loan, Pitsianis
1993). Its truncated SVD is the best fit in the plain metric, and in a metric whose moments are
Kronecker products. In any other metric the fit starts from the better of two: the plain fit and the
fit for the nearest Kronecker-product moments. Alternating least squares follows: A given B by
conjugate gradients, preconditioned by those moments, then B given A.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import isqrt
from typing import ClassVar, Self

from torch import Tensor, nn

from lrcompress.errors import PlanError
from lrcompress.layers import Kind, LayerSpec
from lrcompress.structures.block_modules import KroneckerLinear
from lrcompress.structures.kronecker_fit import KroneckerFit, Split, restored
from lrcompress.structures.structure import LINEAR_KINDS, Factors, FitTask, Structure, check_size

_KEPT = (0.03, 0.1, 0.25)  # shares of the dense weight's parameters


# Not tried by default. On MiniLM's layers (two-sided metric), near-square factors with 3 % of the
# weight's parameters have .87 of low rank's loss but need half of the dense operations. With 30 %
# they have 1.6 times low rank's loss and need five times the dense operations.
@dataclass(frozen=True)
class Kronecker(Structure):
    """`rank` terms; A is (rows, columns). Sizes of 0 are set near the roots of the weight's."""

    rank: int
    rows: int = 0
    columns: int = 0
    type_name: ClassVar[str] = "kronecker"
    kinds: ClassVar[frozenset[Kind]] = LINEAR_KINDS
    tried_by_default: ClassVar[bool] = False

    def check_sizes(self, spec: LayerSpec) -> None:
        if not (0 <= self.rows <= spec.out_features and 0 <= self.columns <= spec.in_features):
            raise PlanError(
                f"{spec.name}: factors of {self.rows} x {self.columns} do not fit into its weight "
                f"of {spec.out_features} x {spec.in_features}; edit them, or leave them out"
            )
        split = self.split(spec)
        largest = min(split.m1 * split.n1, split.m2 * split.n2)
        limit = f"its factors are {split.m1} x {split.n1} and {split.m2} x {split.n2}"
        check_size(spec, "rank", self.rank, largest, limit=limit)

    def split(self, spec: LayerSpec) -> Split:
        m1 = self.rows or _near_root(spec.out_features)
        n1 = self.columns or _near_root(spec.in_features)
        return Split(m1, -(-spec.out_features // m1), n1, -(-spec.in_features // n1))

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        split = self.split(spec)
        return {
            "left": (self.rank, split.m1, split.n1),
            "right": (self.rank, split.m2, split.n2),
        }

    def flops_per_row(self, spec: LayerSpec) -> int:
        split = self.split(spec)
        return 2 * self.rank * split.n1 * split.m2 * (split.n2 + split.m1)

    def _fit(self, task: FitTask) -> Factors:
        problem = KroneckerFit.of(task.weight[0], task.whitening, self.split(task.spec))
        start = None if task.start is None else (task.start["left"], task.start["right"])
        left, right = problem.best(self.rank, start, sweeps=2 if task.quick else 10)
        return {"left": left, "right": right}

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        left, right = factors["left"].flatten(1), factors["right"].flatten(1)
        whole = restored(left.mT @ right, self.split(spec))
        return whole[None, : spec.out_features, : spec.in_features]

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        features = spec.out_features, spec.in_features
        return KroneckerLinear.like(layer, factors, bias, features).train(layer.training)

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        if spec.kind not in cls.kinds or spec.groups != 1:
            return ()
        one = cls(1).weight_params(spec)
        ranks = sorted({max(1, int(kept * spec.weight_params / one)) for kept in _KEPT})
        fitting = tuple(cls(r) for r in ranks if r * one < spec.weight_params)
        return (fitting,) if fitting else ()


def _near_root(features: int) -> int:
    """A divisor of `features` at or below its root, or the root, with padding, if none is close."""
    root = isqrt(features)
    return next((x for x in range(root, root // 2, -1) if features % x == 0), root)
