"""The weighted fit of BLAST weights, which minimises 1/2 tr(G dW C dW^T).

Block-diagonal parts of G and C are absorbed into the weight (`block_metric`), which leaves a plain
fit with couplings. The fit begins with plain sweeps, at a fifth of the cost of a coupled sweep.
Coupled alternating sweeps with momentum follow. Coupled sweeps alone take two to three times as
long.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.metrics import Whitening
from lrcompress.structures.blast_fit.block_metric import BlockMetric, block_metric
from lrcompress.structures.blast_fit.coupled_rows import Coupled, improve_rows_
from lrcompress.structures.blast_fit.factors import BlastFactors, block_length
from lrcompress.structures.blast_fit.plain import fit_plain
from lrcompress.structures.solve import check_finite

_SMALL = 64 * 64  # scalars of a weight up to which float64 costs nothing extra
_MOMENTUM = 0.9  # a growing one, as Nesterov's, gains slightly at first but stalls later
_CHECKED = 5  # sweeps between evaluations of the loss, which cost a third of a sweep
_WORTHWHILE = 2e-3  # share of the loss to gain between two evaluations


@dataclass(frozen=True)
class Effort:
    """Maximum numbers of sweeps."""

    plain: int  # before the coupled ones, unless a start of full rank is given
    coupled: int
    uncoupled: int  # of a plain fit, if the metric couples no blocks


QUICK = Effort(plain=20, coupled=8, uncoupled=20)
FULL = Effort(plain=30, coupled=100, uncoupled=100)

_Map = Callable[[Tensor], Tensor]


@torch.no_grad()
def fit_weighted(
    weight: Tensor,
    whitening: Whitening,
    *,
    rank: int,
    grid: tuple[int, int],
    effort: Effort = FULL,
    start: BlastFactors | None = None,
) -> BlastFactors:
    """Fit BLAST factors to weights (groups, m, n) in the whitened norm; returns float64.

    grid: numbers of block rows and block columns. start: factors of this rank or less and of the
    same grid; the loss of the result is at most theirs.

    Raises:
        FitError: the weight or its whitening is not finite.
    """
    groups = [slice(g, g + 1) for g in range(weight.shape[0])]
    starts = [None if start is None else start.of_weights(g) for g in groups]
    found = [
        _fit_group(weight[g], g.start, whitening, rank, grid, effort, initial)
        for g, initial in zip(groups, starts, strict=True)
    ]
    return BlastFactors(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _fit_group(
    weight: Tensor,
    group: int,
    whitening: Whitening,
    rank: int,
    grid: tuple[int, int],
    effort: Effort,
    start: BlastFactors | None,
) -> BlastFactors:
    """Fit one group; weight: (1, m, n)."""
    dtype = torch.float64 if weight.numel() <= _SMALL else torch.float32
    outer = block_metric(whitening.output, group, weight.shape[1], grid[0], dtype)
    inner = block_metric(whitening.input, group, weight.shape[2], grid[1], dtype)
    target = _whitened(weight.to(torch.float64), outer, inner, grid)
    check_finite(target)
    if start is not None:
        start = _mapped(start.to(target), outer.whiten, inner.whiten)
    plain = partial(fit_plain, rank=rank, blocks_out=grid[0], blocks_in=grid[1])
    if outer.coupling is None and inner.coupling is None:
        found = plain(target, sweeps=effort.uncoupled, start=start)
    else:
        size = torch.linalg.vector_norm(target).clamp_min(torch.finfo(target.dtype).tiny)
        target = (target / size).to(dtype)  # norm 1, which suits the range of float32
        start = None if start is None else _times(start, 1 / size).to(target)
        # Columns added to a start of lower rank begin as low rank. They need many sweeps to use s,
        # and plain ones are cheaper.
        if start is not None and start.rank == rank:
            initial = start
        else:
            initial = plain(target, sweeps=effort.plain, start=start)
        problem = Coupled.of(target[0], outer.coupling, inner.coupling)
        found = _sweeps(problem, initial, effort.coupled)
        if start is not None:
            found = _no_worse(problem, found, start)
        found = _times(found.to(size), size)
    return _mapped(found, outer.unwhiten, inner.unwhiten).balanced()


def _sweeps(problem: Coupled, initial: BlastFactors, sweeps: int) -> BlastFactors:
    """Run coupled sweeps that extrapolate U, s and V together, with momentum."""
    m, n = problem.products[0].shape
    diag_with_rows = n <= m  # s is cheapest with the smaller moment
    last, point = _copied(initial), _copied(initial)
    best, best_loss, gaining, restarted = initial, float("inf"), 0, False
    for sweep in range(1, sweeps + 1):
        improve_rows_(problem, point, with_diag=diag_with_rows)
        improve_rows_(problem.transposed, point.transposed, with_diag=not diag_with_rows)
        _extrapolate_(last, point, _MOMENTUM if gaining else 0.0)
        last, point, gaining = point, last, gaining + 1
        if sweep % _CHECKED and sweep != sweeps:
            continue
        loss = problem.loss(last)
        gained = best_loss - loss
        if gained > 0:
            best, best_loss, restarted = _copied(last), loss, False
            if gained < _WORTHWHILE * best_loss:
                break
        elif restarted:
            break
        else:  # restart: without momentum the loss does not grow
            last, point, gaining, restarted = _copied(best), _copied(best), 0, True
    return best


def _extrapolate_(last: BlastFactors, new: BlastFactors, momentum: float) -> None:
    """Set `last` to new + momentum (new - last), in place."""
    for before, after in zip(last, new, strict=True):
        torch.lerp(before, after, 1 + momentum, out=before)


def _no_worse(problem: Coupled, found: BlastFactors, start: BlastFactors) -> BlastFactors:
    """Return `found`, or `start` padded with zero columns if its loss is lower."""
    if problem.loss(found) <= problem.loss(start):
        return found
    more = found.rank - start.rank
    return BlastFactors(*(functional.pad(part, (0, more)) for part in start))


def _whitened(
    weight: Tensor, outer: BlockMetric, inner: BlockMetric, grid: tuple[int, int]
) -> Tensor:
    """Apply the roots of the diagonal blocks on both sides: (1, m, n) -> (1, b_out p, b_in q)."""
    m, n = weight.shape[1:]
    p, q = block_length(m, grid[0]), block_length(n, grid[1])
    padded = functional.pad(weight, (0, grid[1] * q - n, 0, grid[0] * p - m))[0]
    rows = outer.whiten(padded.view(grid[0], p, -1)).flatten(0, 1)  # (b_out p, b_in q)
    columns = inner.whiten(rows.mT.reshape(grid[1], q, -1)).flatten(0, 1)
    return columns.mT.contiguous()[None]


def _mapped(factors: BlastFactors, left: _Map, right: _Map) -> BlastFactors:
    """Apply `left` to U and `right` to V of a single weight."""
    return BlastFactors(left(factors.left[0])[None], factors.diag, right(factors.right[0])[None])


def _times(factors: BlastFactors, scale: Tensor) -> BlastFactors:
    return factors._replace(left=factors.left * scale)


def _copied(factors: BlastFactors) -> BlastFactors:
    return BlastFactors(*(part.clone() for part in factors))
