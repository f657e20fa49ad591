"""Tucker-2: a kernel whose two channel modes are low rank (Kim et al. 2016).

y = U * (core * (V * x)) + b;  V: (q, c, 1, 1)  core: (p, q, kh, kw)  U: (m, p, 1, 1)

The module is two 1x1 convolutions around a smaller one with the layer's stride, padding and
dilation. The fit starts from TensorLy's partial Tucker of the kernel whitened in all modes, as if
the input moment were a Kronecker product of channels and positions. Both parts are then improved in
the true metric (`two_stage`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod, sqrt
from typing import ClassVar, Self

import torch
from torch import Tensor

from lrcompress.layers import LayerSpec
from lrcompress.structures.conv_chain import ChainStructure
from lrcompress.structures.modes import torch_backend
from lrcompress.structures.structure import Factors, FitTask, Structure, check_size
from lrcompress.structures.two_stage import TwoStageFit, extended

SHARES = (0.15, 0.3, 0.45, 0.6, 0.75)  # of the dense weight, for a loss curve


@dataclass(frozen=True)
class Tucker2(ChainStructure):
    """`rank_in` channels before the small kernel, `rank_out` after it."""

    rank_out: int
    rank_in: int
    type_name: ClassVar[str] = "tucker2"

    def check_sizes(self, spec: LayerSpec) -> None:
        super().check_sizes(spec)
        positions = prod(spec.kernel)
        channels = spec.in_features // positions
        limit = f"the kernel is {spec.out_features} x {channels} x {positions}"
        largest = min(spec.out_features, self.rank_in * positions)
        check_size(spec, "rank_out", self.rank_out, largest, limit=limit)
        largest = min(channels, self.rank_out * positions)
        check_size(spec, "rank_in", self.rank_in, largest, limit=limit)

    def flops_per_row(self, spec: LayerSpec) -> int:
        first, core, last = (prod(shape) for shape in self.factor_shapes(spec).values())
        return 2 * (first * prod(spec.stride) + core + last)

    def stages(self, spec: LayerSpec) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        axes = tuple(range(len(spec.kernel)))
        one = (1,) * len(axes)
        return {
            "first": ((self.rank_in, spec.in_features // prod(spec.kernel), *one), ()),
            "core": ((self.rank_out, self.rank_in, *spec.kernel), axes),
            "last": ((spec.out_features, self.rank_out, *one), ()),
        }

    def _fit(self, task: FitTask) -> Factors:
        sweeps, steps = (3, 6) if task.quick else (16, 12)
        return self.fit_with(task, sweeps=sweeps, steps=steps)

    def fit_with(self, task: FitTask, *, sweeps: int, steps: int) -> Factors:
        """`fit` with at most `sweeps` sweeps, of `steps` steps in the first stage."""
        spec, start = task.spec, task.start
        problem = TwoStageFit(task.weight, task.whitening, prod(spec.kernel))
        first = self._whitened_tucker(problem)
        candidates = [first]
        if start is not None and len(start["first"]) <= self.rank_in:
            candidates.append(extended(start["first"].flatten(1).double(), first, self.rank_in))
        fitted = problem.fit(candidates, self.rank_out, sweeps=sweeps, steps=steps)
        last = task.whitening.output.left_inverse(fitted.basis[None])[0]
        # Put all scale in the core: undoing a whitening may leave a factor much too large
        q, r = torch.linalg.qr(last)
        flat = (fitted.first, r @ fitted.core, q)
        shapes = self.factor_shapes(spec).items()
        return {name: x.reshape(shape) for (name, shape), x in zip(shapes, flat, strict=True)}

    def _whitened_tucker(self, problem: TwoStageFit) -> Tensor:
        """The first stage (q, c) of TensorLy's partial Tucker in the whitened space."""
        over, under = problem.separable_roots()
        kernel = problem.by_pairs(problem.half)  # (m, c, positions)
        kernel = over.right(under.right(kernel).mT).mT
        if not bool(kernel.any()):  # TensorLy would divide by its norm, which is zero
            return torch.eye(self.rank_in, problem.outer, dtype=kernel.dtype, device=kernel.device)
        with torch_backend() as tensorly:
            ranks = [self.rank_out, self.rank_in]
            (_, (_, channels)), _ = tensorly.decomposition.partial_tucker(
                kernel, rank=ranks, modes=[0, 1], random_state=0
            )
        return over.right_inverse(channels.mT[None])[0]

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        """One family, in which both ranks keep the same share of their channels."""
        if spec.kind not in cls.kinds or spec.groups != 1 or prod(spec.kernel) == 1:
            return ()
        if spec.in_features == prod(spec.kernel):
            return ()  # one input channel: LowRank with a redundant stage
        return cls.family_of((cls.holding(share, spec) for share in SHARES), spec)

    @classmethod
    def holding(cls, share: float, spec: LayerSpec) -> Self:
        """The structure with about `share` of the weight's scalars.

        Both sides keep the same part f of their channels: f (m^2 + c^2) + f^2 m n = share m n.
        """
        positions = prod(spec.kernel)
        out, channels = spec.out_features, spec.in_features // positions
        linear, square = out**2 + channels**2, spec.weight_params
        part = (sqrt(linear**2 + 4 * square * share * square) - linear) / (2 * square)
        rank_in = max(1, round(part * channels))
        rank_out = max(1, min(round(part * out), rank_in * positions))
        return cls(rank_out, min(rank_in, rank_out * positions))

    def between(self, larger: Structure) -> tuple[Structure, ...]:
        """All output ranks between, each with the input rank interpolated linearly."""
        if not isinstance(larger, Tucker2) or larger.rank_out <= self.rank_out:
            return ()
        slope = (larger.rank_in - self.rank_in) / (larger.rank_out - self.rank_out)
        return tuple(
            Tucker2(rank, round(self.rank_in + slope * (rank - self.rank_out)))
            for rank in range(self.rank_out + 1, larger.rank_out)
        )
