"""Fit of a weight in two stages, W[o, (a, b)] = sum_q T[o, q, b] V[q, a], in a layer's metric.

The inputs are indexed by pairs (a, b), b fastest. The first stage V: (q, a) is applied to the
inputs a of each b separately. The second stage T: (m, q b), of rank p or less, mixes its outputs.
Examples are Tucker-2 of a kernel (a: channels, b: all kernel positions) and a separable kernel
(a: channels and rows, b: columns, any p).

Two alternating steps lower the loss 1/2 tr(G dW C dW^T):
  T given V   reduced-rank regression, the exact optimum (Izenman 1975): G^1/2 W C^1/2 projected on
              the rows of D = (V (x) I_b) C^1/2, then truncated to rank p
  V given T   linear least squares by preconditioned conjugate gradients; only V's span matters
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.metrics import Whitening
from lrcompress.metrics.root import Root, root_of
from lrcompress.structures.modes import separable, times
from lrcompress.structures.solve import check_finite, cholesky, pcg, rows_solved

_WORTHWHILE = 1e-5  # share of the loss that a sweep must gain for another to follow


@dataclass(frozen=True, eq=False)
class TwoStages:
    """Fitted stages, whose product is G^-1/2 basis core (first (x) I_b)."""

    first: Tensor  # V: (q, a), orthonormal rows
    basis: Tensor  # (m, p), orthonormal columns in the whitened outputs
    core: Tensor  # (p, q b)
    loss: float


class TwoStageFit:
    """The fit of one weight (1, m, a b) in one metric; `inner` is the size of index b."""

    def __init__(self, weight: Tensor, whitening: Whitening, inner: int) -> None:
        self.inner, self.whitening = inner, whitening
        self.half = whitening.output.left(weight.to(torch.float64))[0]  # G^1/2 W: (m, n)
        self.total = whitening.input.right(self.half[None]).square().sum()
        self.gram = whitening.input.gram()
        self.paired = times(self.half, self.gram)  # G^1/2 W C
        check_finite(self.total)

    @property
    def outer(self) -> int:
        return self.half.shape[1] // self.inner

    def by_pairs(self, rows: Tensor) -> Tensor:
        """Reshape (rows, a b) -> (rows, a, b), for any size of a."""
        return rows.reshape(len(rows), -1, self.inner)

    def fit(self, candidates: list[Tensor], rank: int, *, sweeps: int, steps: int) -> TwoStages:
        """Alternate from the best of the candidate first stages; no sweep increases the loss."""
        starts = (self.second_stage(_orthonormal(first), rank) for first in candidates)
        best = min(starts, key=lambda fitted: fitted.loss)
        for _ in range(sweeps):
            core, target = self.by_pairs(best.core), best.basis.mT @ self.half  # (p, q, b), (p, n)
            first = first_stage_step(best.first, core, target, self.gram, steps)
            after = self.second_stage(_orthonormal(first), rank)
            if not after.loss < best.loss:
                break
            gained = best.loss - after.loss
            best = after
            if gained <= _WORTHWHILE * after.loss:
                break
        return best

    def second_stage(self, first: Tensor, rank: int) -> TwoStages:
        """Compute the best second stage of rank `rank` for the given first stage."""
        gram = self._seen(first)  # D D^T: (q b, q b)
        paired = torch.tensordot(self.by_pairs(self.paired), first, dims=([1], [1]))
        paired = paired.mT.flatten(1)  # G^1/2 W C^1/2 D^T: (m, q b)
        triangle = cholesky(gram)
        regression = torch.linalg.solve_triangular(triangle, paired.mT, upper=False).mT
        if rank < len(regression):
            basis = torch.linalg.eigh(regression @ regression.mT).eigenvectors[:, -rank:]  # (m, p)
        else:  # nothing to choose
            basis = torch.eye(rank, dtype=gram.dtype, device=gram.device)
        core = torch.linalg.solve_triangular(
            triangle, basis.mT @ regression, upper=False, left=False
        )  # (p, q b)
        explained = 2 * (core * (basis.mT @ paired)).sum() - (core * (core @ gram)).sum()
        return TwoStages(first, basis, core, 0.5 * max(0.0, float(self.total - explained)))

    def _seen(self, first: Tensor) -> Tensor:
        """Return (V (x) I_b) C (V (x) I_b)^T: (q b, q b)."""
        size = len(first) * self.inner
        pairs = self.weighted_rows(first).reshape(size, self.outer, self.inner).mT @ first.mT
        return pairs.mT.reshape(size, size)  # from (q b, b', q')

    def weighted_rows(self, first: Tensor) -> Tensor:
        """Return (V (x) I_b) C, computed without a pass over C for each b: (q, b, n)."""
        if self.gram is not None and self.gram.dim() == 3:
            rows = first @ self.gram[0].reshape(self.outer, -1)
        else:
            rows = times(torch.kron(first, torch.eye(self.inner).to(first)), self.gram)
        return rows.reshape(len(first), self.inner, -1)

    def separable_roots(self) -> tuple[Root, Root]:
        """Roots of C_a and C_b in C ~ C_a (x) C_b, which come from the partial traces of C."""
        over, under = separable(self.gram, self.outer, self.inner, like=self.half)
        return root_of(over[None]), root_of(under[None])


def first_stage_step(
    first: Tensor, core: Tensor, target: Tensor, gram: Tensor | None, steps: int
) -> Tensor:
    """Improve V so that sum_q core[p, q, b] V[q, a] approaches target[p, (a, b)].

    The norm is the input metric. first: V (q, a)  core: (p, q, b)  target: (p, a b). The outputs of
    core and target are in a basis whose metric is the identity.
    """
    p, q, inner = core.shape
    outer = first.shape[1]
    tall = core.permute(0, 2, 1).reshape(p * inner, q)

    def weighted(x: Tensor) -> Tensor:  # (p, a b) -> (p b, a), times C
        return times(x, gram).reshape(p, outer, inner).mT.reshape(p * inner, outer)

    def normal(v: Tensor) -> Tensor:
        product = (tall @ v).reshape(p, inner, outer).mT.reshape(p, outer * inner)
        image: Tensor = tall.mT @ weighted(product)
        return image

    over, under = separable(gram, outer, inner, like=core)
    mixed = torch.tensordot(under, core, dims=([1], [2]))  # (b, p, q)
    left = cholesky(tall.mT @ mixed.permute(1, 0, 2).reshape(p * inner, q))
    right = cholesky(over)

    def precondition(residual: Tensor) -> Tensor:
        return rows_solved(torch.cholesky_solve(residual, left), right)

    return pcg(normal, tall.mT @ weighted(target), precondition, first, steps)


def extended(first: Tensor, by: Tensor, rank: int) -> Tensor:
    """Orthonormal rows: the span of `first`, extended to `rank` rows by the rows of `by`."""
    return _orthonormal(torch.cat([first, by]))[:rank]


def _orthonormal(rows: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(rows.mT).Q
    return q.mT
