"""CP: a kernel as a sum of separable terms (Lebedev et al. 2015).

y = A * (X2 * (X1 * (B * x))) + b;  B: (r, c, 1, 1)  X1: (r, 1, kh, 1)  X2: (r, 1, 1, kw)
A: (m, r, 1, 1)

The module is a 1x1 convolution, one depthwise convolution for each kernel axis with that axis's
stride, padding and dilation, and a 1x1 convolution. The fit starts from TensorLy's PARAFAC of the
kernel whitened in each mode; `cp_fit` improves it in the true metric.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import ClassVar, Self

import torch
from torch import Tensor

from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.structures.conv_chain import ChainStructure
from lrcompress.structures.cp_fit import CpFit, Terms
from lrcompress.structures.cp_start import cp_starts
from lrcompress.structures.structure import Factors, FitTask, check_size
from lrcompress.structures.two_stage import TwoStageFit

SHARES = (0.15, 0.3, 0.45, 0.6)  # of the dense weight, for a loss curve
_AFFORDABLE = 2**31  # most multiplications of all terms by an input moment: seconds per quick fit


@dataclass(frozen=True)
class CP(ChainStructure):
    """A sum of `rank` separable terms."""

    rank: int
    type_name: ClassVar[str] = "cp"

    def check_sizes(self, spec: LayerSpec) -> None:
        super().check_sizes(spec)
        limit = f"the kernel is {' x '.join(map(str, _modes(spec)))}"
        check_size(spec, "rank", self.rank, _largest_rank(spec), limit=limit)

    def stages(self, spec: LayerSpec) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        out, channels, *kernel = _modes(spec)
        one = (1,) * len(kernel)
        separable = {
            f"axis{axis}": ((self.rank, 1, *one[:axis], size, *one[axis + 1 :]), (axis,))
            for axis, size in enumerate(kernel)
        }
        first, last = (self.rank, channels, *one), (out, self.rank, *one)
        return {"first": (first, ()), **separable, "last": (last, ())}

    def flops_per_row(self, spec: LayerSpec) -> int:
        """Each stage reduces one more axis from the size of the input to that of the output."""
        out, channels, *kernel = _modes(spec)
        per_term = channels * prod(spec.stride) + out
        for axis, size in enumerate(kernel):
            per_term += size * prod(spec.stride[axis + 1 :])
        return 2 * self.rank * per_term

    def _fit(self, task: FitTask) -> Factors:
        start, whitening, spec = task.start, task.whitening, task.spec
        problem = TwoStageFit(task.weight, whitening, prod(spec.kernel))
        whole = problem.half.reshape(_modes(spec))
        sweeps, steps = (6, 4) if task.quick else (60, 8)
        candidates: list[Terms] = []
        if start is not None and len(start["first"]) <= self.rank:
            held = _terms(start, whitening)
            rest = whole - (held.outputs @ held.inputs).reshape(whole.shape)
            more = self.rank - len(start["first"])
            added = cp_starts(rest, problem, more) if more else []
            candidates = [held.joined(terms) for terms in added] or [held]
        if not (candidates and task.quick):
            candidates += cp_starts(whole, problem, self.rank)
        terms = CpFit(problem).fit(candidates, sweeps=sweeps, steps=steps)
        return self._factors(terms, whitening, spec)

    def _factors(self, terms: Terms, whitening: Whitening, spec: LayerSpec) -> Factors:
        """Convert terms to kernels, with each term's scale spread evenly over its factors."""
        outputs = whitening.output.left_inverse(terms.outputs[None])[0].mT  # (r, m)
        rows = (terms.channels, *terms.axes, outputs)
        norms = torch.stack([torch.linalg.vector_norm(x, dim=1) for x in rows])  # (factors, r)
        scale = norms.prod(0) ** (1 / len(rows)) / norms
        scale = torch.where(norms.prod(0) > 0, scale, torch.zeros_like(scale))
        even = [x * s.unsqueeze(1) for x, s in zip(rows, scale, strict=True)]
        even[-1] = even[-1].mT  # (m, r)
        shapes = self.factor_shapes(spec).items()
        return {name: x.reshape(shape) for (name, shape), x in zip(shapes, even, strict=True)}

    @classmethod
    def families(cls, spec: LayerSpec) -> tuple[tuple[Self, ...], ...]:
        if spec.kind not in cls.kinds or spec.groups != 1 or prod(spec.kernel) == 1:
            return ()
        modes = _modes(spec)
        ranks = (round(share * prod(modes) / sum(modes)) for share in SHARES)
        largest = min(_largest_rank(spec), _AFFORDABLE // spec.in_features**2)
        return cls.family_of((cls(rank) for rank in ranks if 1 <= rank <= largest), spec)


def _modes(spec: LayerSpec) -> tuple[int, ...]:
    """The sizes (m, c, *kernel)."""
    return (spec.out_features, spec.in_features // prod(spec.kernel), *spec.kernel)


def _largest_rank(spec: LayerSpec) -> int:
    """The rank of a full SVD across channels at each kernel position, exact for any kernel."""
    out, channels, *kernel = _modes(spec)
    return prod(kernel) * min(out, channels)


def _terms(factors: Mapping[str, Tensor], whitening: Whitening) -> Terms:
    """Convert the kernels of `factors` to terms."""
    last = factors["last"].flatten(1).double()  # (m, r)
    axes = sorted(name for name in factors if name.startswith("axis"))
    return Terms(
        whitening.output.left(last[None])[0],
        factors["first"].flatten(1).double(),
        tuple(factors[name].flatten(1).double() for name in axes),
    )
