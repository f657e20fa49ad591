"""Alternating least squares for a CP kernel in a layer's metric.

W[o, (a, b)] = sum_r A[o, r] B[r, a] z[r, b], where z[r, b] is a product over the kernel's axes,
with one factor X: (r, k) for each. Outputs are whitened, so G affects A only. With the input moment
C, each factor except B has small normal equations, which are solved exactly; B takes a few steps of
conjugate gradients. No step increases the loss.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from lrcompress.structures.modes import times
from lrcompress.structures.solve import solve_spd
from lrcompress.structures.two_stage import TwoStageFit, first_stage_step

_ROUNDING = 1e-14  # relative to the weight's squared norm in the metric
_WORTHWHILE = 1e-4  # share of the loss that a sweep must gain for another to follow


@dataclass(frozen=True, eq=False)
class Terms:
    """r terms: whitened outputs (m, r); channels (r, c); axes (r, k) for each kernel axis."""

    outputs: Tensor
    channels: Tensor
    axes: tuple[Tensor, ...]

    @property
    def positions(self) -> Tensor:
        """The products z over the kernel axes: (r, prod k)."""
        return _outer(self.axes)

    @property
    def inputs(self) -> Tensor:
        """The terms as rows over the layer's inputs: (r, c prod k)."""
        return _outer((self.channels, *self.axes))

    def normalised(self) -> Terms:
        """The same terms with all scale in the outputs."""
        norms = [torch.linalg.vector_norm(x, dim=1) for x in (self.channels, *self.axes)]
        scale = torch.stack(norms).prod(0)
        unit = [
            x / torch.where(norm > 0, norm, 1.0).unsqueeze(1)
            for x, norm in zip((self.channels, *self.axes), norms, strict=True)
        ]
        return Terms(self.outputs * scale, unit[0], tuple(unit[1:]))

    def beyond(self, before: Terms, by: float) -> Terms:
        """Extrapolate: self + by (self - before)."""
        return Terms(
            torch.lerp(self.outputs, before.outputs, -by),
            torch.lerp(self.channels, before.channels, -by),
            tuple(torch.lerp(x, y, -by) for x, y in zip(self.axes, before.axes, strict=True)),
        )

    def joined(self, others: Terms) -> Terms:
        return Terms(
            torch.cat([self.outputs, others.outputs], 1),
            torch.cat([self.channels, others.channels]),
            tuple(torch.cat(pair) for pair in zip(self.axes, others.axes, strict=True)),
        )


class CpFit:
    def __init__(self, problem: TwoStageFit) -> None:
        """`problem`: the weight in its metric; its inner inputs are all kernel positions."""
        self.problem = problem

    def fit(self, candidates: list[Terms], *, sweeps: int, steps: int) -> Terms:
        """Solve for the best outputs of each candidate and improve the best candidate by sweeps.

        Sweeps use Nesterov's momentum, which grows until the loss grows and then restarts
        (Mitchell, Ye and De Sterck 2020).
        """
        best, loss = min((self._best_outputs(x) for x in candidates), key=lambda fitted: fitted[1])
        before, ahead = best, 0
        for _ in range(sweeps):
            if loss <= _ROUNDING * float(self.problem.total):
                break
            at = best.beyond(before, ahead / (ahead + 3))
            terms, after = self._best_outputs(self._better_inputs(at, steps))
            if after < loss:
                flat = loss - after <= _WORTHWHILE * after
                before, best, loss, ahead = best, terms, after, ahead + 1
                if flat:
                    break
            elif ahead > 0:
                before, ahead = best, 0
            else:
                break
        return best

    def _best_outputs(self, terms: Terms) -> tuple[Terms, float]:
        """Return the terms with the best outputs for their inputs, and the loss."""
        terms = terms.normalised()
        inputs = terms.inputs
        gram = times(inputs, self.problem.gram) @ inputs.mT
        wanted = inputs @ self.problem.paired.mT  # (r, m)
        solved = solve_spd(gram, wanted, terms.outputs.mT)
        explained = (solved * (2 * wanted - gram @ solved)).sum()
        loss = 0.5 * max(0.0, float(self.problem.total - explained))
        return replace(terms, outputs=solved.mT), loss

    def _better_inputs(self, terms: Terms, steps: int) -> Terms:
        q, r = torch.linalg.qr(terms.outputs)  # (m, p), (p, r)
        core = r.unsqueeze(-1) * terms.positions  # (p, r, b)
        channels = first_stage_step(
            terms.channels, core, q.mT @ self.problem.half, self.problem.gram, steps
        )
        terms = replace(terms, channels=channels)
        overlap = terms.outputs.mT @ terms.outputs
        rows = self.problem.weighted_rows(channels)  # (r, b, n)
        pulled = self.problem.by_pairs(terms.outputs.mT @ self.problem.paired)
        pulled = (pulled * channels.unsqueeze(-1)).sum(1)  # (r, b)
        for axis in range(len(terms.axes)):
            terms = self._best_axis(terms, axis, overlap, rows, pulled)
        return terms

    def _best_axis(
        self, terms: Terms, axis: int, overlap: Tensor, rows: Tensor, pulled: Tensor
    ) -> Terms:
        """Solve exactly for the factor of one kernel axis (index i), given the others (index j)."""
        rank, size = terms.axes[axis].shape
        shape = [x.shape[1] for x in terms.axes]
        ones = torch.ones_like(terms.axes[axis][:, :1])
        others = _outer((ones, *terms.axes[:axis], *terms.axes[axis + 1 :]))  # (r, j)
        ahead = prod(shape[:axis])

        def by_axis(x: Tensor, at: int) -> Tensor:
            """Split b at dimension `at` into i, followed by j."""
            x = x.reshape(*x.shape[:at], ahead, size, -1, *x.shape[at + 1 :])
            return x.transpose(at, at + 1).flatten(at + 1, at + 2)

        summed = (by_axis(rows, 1) * others[:, None, :, None]).sum(2)  # (r, i, n)
        pairs = by_axis(self.problem.by_pairs(summed.flatten(0, 1)), 2)  # (r i, a, i', j')
        terms_rows = _outer((terms.channels, others))  # (r', a j')
        gram = pairs.transpose(1, 2).flatten(2) @ terms_rows.mT  # (r i, i', r')
        gram = gram.reshape(rank, size, size, rank).transpose(2, 3)  # (r, i, r', i')
        gram = (gram * overlap[:, None, :, None]).reshape(rank * size, rank * size)
        rhs = (by_axis(pulled, 1) * others.unsqueeze(1)).sum(2)  # (r, i)
        now = terms.axes[axis]
        solved = solve_spd(gram, rhs.reshape(-1, 1), now.reshape(-1, 1)).reshape(rank, size)
        axes = (*terms.axes[:axis], solved, *terms.axes[axis + 1 :])
        return replace(terms, axes=axes)


def _outer(rows: tuple[Tensor, ...]) -> Tensor:
    """The row-wise outer product of (r, k1), (r, k2), ...: (r, k1 k2 ...)."""
    product, *rest = rows
    for row in rest:
        product = (product.unsqueeze(-1) * row.unsqueeze(-2)).flatten(1)
    return product
