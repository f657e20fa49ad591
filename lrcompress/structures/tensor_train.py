"""Tensor train: an embedding's table as a product of small cores (Khrulkov et al. 2019).

y = X1[i1] X2[i2] (X3[i3]);  X: (r, v, d, r')  for a token with digits i in the base (v1, v2, v3)

The vocabulary is padded to v1 v2 (v3); the features are d1 d2 (d3) exactly. The table itself is
never formed for a lookup. Integer divisions give the digits, one row of each core is gathered, and
batched products join the rows.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import ClassVar, Self

from torch import Tensor, nn

from lrcompress.errors import PlanError
from lrcompress.layers import Kind, LayerSpec
from lrcompress.structures.structure import Factors, FitTask, Structure, check_size
from lrcompress.structures.tensor_train_fit import Shape, TensorTrainFit, product
from lrcompress.structures.tensor_train_module import TensorTrainEmbedding
from lrcompress.structures.tensor_train_start import joined, whitened_tt_svd

SHARES = (0.05, 0.15, 0.3, 0.5)  # of the dense table, for a loss curve


@dataclass(frozen=True)
class TensorTrain(Structure):
    """`cores` cores of rank `rank` between neighbours, or of the largest rank their sizes allow."""

    rank: int
    cores: int = 2
    type_name: ClassVar[str] = "tensor_train"
    kinds: ClassVar[frozenset[Kind]] = frozenset(("embedding",))

    def check_sizes(self, spec: LayerSpec) -> None:
        if spec.tied:
            raise PlanError(
                f"{spec.name}: tensor_train cannot be an output head as well ({spec.tied[0]} is "
                "tied to this embedding); use low_rank or dense"
            )
        if self.cores not in (2, 3):
            raise PlanError(
                f"{spec.name}: tensor_train has 2 or 3 cores, not {self.cores}; edit its cores"
            )
        largest = max(_largest_ranks(spec, self.cores))
        limit = f"the table is {spec.in_features} x {spec.out_features} in {self.cores} cores"
        check_size(spec, "rank", self.rank, largest, limit=limit)

    def shape(self, spec: LayerSpec) -> Shape:
        ranks = tuple(min(self.rank, most) for most in _largest_ranks(spec, self.cores))
        return Shape(
            padded_factors(spec.in_features, self.cores),
            factors_of(spec.out_features, self.cores),
            ranks,
        )

    def factor_shapes(self, spec: LayerSpec) -> dict[str, tuple[int, ...]]:
        return {f"core{k}": size for k, size in enumerate(self.shape(spec).cores)}

    def flops_per_row(self, spec: LayerSpec) -> int:
        """Operations of the products that join the cores' rows, from the left."""
        (_, _, width, _), *rest = self.shape(spec).cores
        total = 0
        for before, _, d, after in rest:
            total += 2 * width * before * d * after
            width *= d
        return total

    def _fit(self, task: FitTask) -> Factors:
        shape, start = self.shape(task.spec), task.start
        problem = TensorTrainFit(task.weight, task.whitening, shape)
        candidates: list[list[Tensor]] = []
        if start is not None and len(start) == self.cores:
            held = [start[name].to(problem.target) for name in sorted(start)]
            more = tuple(
                rank - core.shape[3] for rank, core in zip(shape.ranks, held[:-1], strict=True)
            )
            if min(more) >= 0:
                candidates.append(joined(held, self._rest(problem, held, more), shape))
        if not (candidates and task.quick):
            candidates.append(whitened_tt_svd(problem.target, problem, shape.ranks))
        sweeps, steps = (1, 3) if task.quick else (4, 6)
        cores = problem.fit(candidates, sweeps=sweeps, steps=steps)
        return {f"core{k}": core.double() for k, core in enumerate(cores)}

    def _rest(
        self, problem: TensorTrainFit, held: list[Tensor], more: tuple[int, ...]
    ) -> list[Tensor] | None:
        """Cores for the residual of `held`, or None unless every rank has grown."""
        if min(more) == 0:
            return None
        missing = problem.target - product(held)[0, : len(problem.target), :, 0]
        return whitened_tt_svd(missing, problem, more)

    def dense(self, factors: Factors, spec: LayerSpec) -> Tensor:
        table = product([factors[name] for name in sorted(factors)])[0, : spec.in_features, :, 0]
        return table.mT[None]

    def build(
        self, layer: nn.Module, spec: LayerSpec, factors: Factors, bias: Tensor | None
    ) -> nn.Module:
        cores = [factors[name] for name in sorted(factors)]
        return TensorTrainEmbedding.like(layer, cores).train(layer.training)

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        if spec.kind not in cls.kinds or spec.tied:
            return ()
        # two cores: a third loses more at equal parameters
        sizes = (cls.holding(share, spec) for share in SHARES)
        return cls.family_of((size for size in sizes if size is not None), spec)

    @classmethod
    def holding(cls, share: float, spec: LayerSpec, cores: int = 2) -> Self | None:
        """The largest structure with at most `share` of the table's parameters, or None."""
        ranks = range(1, max(_largest_ranks(spec, cores)) + 1)
        most = share * spec.weight_params
        rank = bisect_right(ranks, most, key=lambda r: cls(r, cores).weight_params(spec))
        return cls(rank, cores) if rank else None


@cache
def padded_factors(size: int, count: int) -> tuple[int, ...]:
    """Near-equal factors, ascending, whose product is at least `size` and close to it."""
    if count == 1:
        return (size,)
    root = round(size ** (1 / count))
    found = []
    for first in range(max(1, root - root // 4), root + 1):
        rest = padded_factors(-(-size // first), count - 1)
        found.append((first * prod(rest), -first, rest))
    _, first, rest = min(found)
    return tuple(sorted((-first, *rest)))


@cache
def factors_of(size: int, count: int) -> tuple[int, ...]:
    """The most equal factors, ascending, whose product is `size`."""
    if count == 1:
        return (size,)
    choices = [
        tuple(sorted((first, *factors_of(size // first, count - 1))))
        for first in range(1, size + 1)
        if size % first == 0
    ]
    return min(choices, key=sum)


def _largest_ranks(spec: LayerSpec, cores: int) -> tuple[int, ...]:
    """The largest rank between each pair of cores: the shorter side of the unfolding there."""
    tokens = padded_factors(spec.in_features, cores)
    features = factors_of(spec.out_features, cores)
    left = [prod(tokens[:k]) * prod(features[:k]) for k in range(1, cores)]
    whole = prod(tokens) * prod(features)
    return tuple(min(rows, whole // rows) for rows in left)
