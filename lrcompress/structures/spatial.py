"""Separable low rank: a tall convolution, then a wide one (Jaderberg et al. 2014, scheme 2).

y = H * (V * x) + b;  V: (r, c, kh, 1)  H: (m, r, 1, kw)

Rows (height) with their stride, padding and dilation belong to the first convolution, columns to
the second. In the plain metric the best pair is the truncated SVD of the kernel rearranged as
(c kh) x (m kw). In any other metric the fit starts from this SVD, whitened as if the input moment
were separable, and improves both parts in the true metric (`two_stage`). LowRank factors across
channels instead.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from lrcompress.layers import Kind, LayerSpec
from lrcompress.structures.conv_chain import ChainStructure
from lrcompress.structures.structure import Factors, FitTask, check_size
from lrcompress.structures.two_stage import TwoStageFit, extended

SHARES = (0.15, 0.3, 0.45, 0.6, 0.75)  # of the dense weight, for a loss curve


@dataclass(frozen=True)
class SpatialLowRank(ChainStructure):
    """`rank` channels between the two convolutions."""

    rank: int
    type_name: ClassVar[str] = "spatial"
    kinds: ClassVar[frozenset[Kind]] = frozenset(("conv2d",))

    def check_sizes(self, spec: LayerSpec) -> None:
        super().check_sizes(spec)
        limit = f"the rearranged kernel is {_tall(spec)} x {_wide(spec)}"
        check_size(spec, "rank", self.rank, _largest_rank(spec), limit=limit)

    def stages(self, spec: LayerSpec) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        height, width = spec.kernel
        return {
            "tall": ((self.rank, spec.in_features // prod(spec.kernel), height, 1), (0,)),
            "wide": ((spec.out_features, self.rank, 1, width), (1,)),
        }

    def flops_per_row(self, spec: LayerSpec) -> int:
        """The first convolution is computed at every column of the input."""
        return 2 * self.rank * (_tall(spec) * spec.stride[1] + _wide(spec))

    def _fit(self, task: FitTask) -> Factors:
        spec, start = task.spec, task.start
        problem = TwoStageFit(task.weight, task.whitening, spec.kernel[1])
        first = self._separable_svd(problem)
        candidates = [first]
        if start is not None and len(start["tall"]) <= self.rank:
            candidates.append(extended(start["tall"].flatten(1).double(), first, self.rank))
        sweeps, steps = (3, 6) if task.quick else (16, 12)
        fitted = problem.fit(candidates, spec.out_features, sweeps=sweeps, steps=steps)
        second = task.whitening.output.left_inverse((fitted.basis @ fitted.core)[None])[0]
        shapes = self.factor_shapes(spec)
        return {
            "tall": fitted.first.reshape(shapes["tall"]),
            "wide": second.reshape(shapes["wide"]),
        }

    def _separable_svd(self, problem: TwoStageFit) -> Tensor:
        """The first stage (r, c kh) from the truncated SVD in the separably whitened space."""
        over, under = problem.separable_roots()
        kernel = problem.by_pairs(problem.half)  # (m, c kh, kw)
        kernel = over.right(under.right(kernel).mT)  # (m, kw, c kh)
        rows = torch.linalg.svd(kernel.flatten(0, 1), full_matrices=False).Vh[: self.rank]
        return over.right_inverse(rows[None])[0]

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        if spec.kind not in cls.kinds or spec.groups != 1 or min(spec.kernel) == 1:
            return ()  # along a single axis it equals LowRank
        per_rank = _tall(spec) + _wide(spec)
        ranks = (max(1, round(share * spec.weight_params / per_rank)) for share in SHARES)
        return cls.family_of((cls(rank) for rank in ranks if rank <= _largest_rank(spec)), spec)


def _tall(spec: LayerSpec) -> int:
    """c kh: scalars in one output channel of the first kernel."""
    return spec.in_features // spec.kernel[1]


def _wide(spec: LayerSpec) -> int:
    """m kw: scalars in one input channel of the second kernel."""
    return spec.out_features * spec.kernel[1]


def _largest_rank(spec: LayerSpec) -> int:
    return min(_tall(spec), _wide(spec))
