"""The weighted fit of BLAST weights: least 1/2 tr(G dW C dW^T).

Block-diagonal parts of G and C are taken into the weight (`block_metric`), which leaves a plain fit
with couplings. It begins as one, at a fifth of the cost of a coupled sweep; alternating sweeps with
momentum follow. One in the full metric alone from the start needs two to three times the time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.errors import FitError
from lrcompress.metrics import Whitening
from lrcompress.structures.blast_fit.block_metric import BlockMetric, block_metric
from lrcompress.structures.blast_fit.coupled_rows import Coupled, improve_rows_
from lrcompress.structures.blast_fit.factors import BlastFactors, block_length
from lrcompress.structures.blast_fit.plain import fit_plain

_SMALL = 64 * 64  # numbers of a weight that is fitted in float64, which costs nothing there
_MOMENTUM = 0.9  # one that grows as Nesterov's gains a little at first, and comes to a halt later
_CHECKED = 5  # sweeps between looks at the loss, which costs a third of a sweep
_WORTHWHILE = 2e-3  # of the loss between two looks


@dataclass(frozen=True)
class Effort:
    """Sweeps at most."""

    plain: int  # before the coupled ones of a cold start
    coupled: int
    uncoupled: int  # where the metric couples no blocks, and the plain fit is all


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
    """BLAST factors near weights (groups, m, n) in the norm of their whitening; in float64.

    grid: rows and columns of blocks. start: factors of this rank or less, of the same grid; the
    result loses no more than they do.

    Raises:
        FitError: the weight or its whitening is not finite.
    """
    found = [
        _fit_group(weight[g : g + 1], g, whitening, rank, grid, effort, _group(start, g))
        for g in range(weight.shape[0])
    ]
    parts = zip(*(_parts(f) for f in found), strict=True)
    return BlastFactors(*(torch.cat(part) for part in parts))


def _fit_group(
    weight: Tensor,
    group: int,
    whitening: Whitening,
    rank: int,
    grid: tuple[int, int],
    effort: Effort,
    start: BlastFactors | None,
) -> BlastFactors:
    """weight: (1, m, n)"""
    dtype = torch.float64 if weight.numel() <= _SMALL else torch.float32
    outer = block_metric(whitening.output, group, weight.shape[1], grid[0], dtype)
    inner = block_metric(whitening.input, group, weight.shape[2], grid[1], dtype)
    target = _whitened(weight.to(torch.float64), outer, inner, grid)
    if not bool(torch.isfinite(target).all()):
        raise FitError("the weight or its moments are not finite; check the model and data")
    if start is not None:
        start = _mapped(start.to(target), outer.whiten, inner.whiten)
    if outer.coupling is None and inner.coupling is None:
        b_out, b_in = grid
        sweeps = effort.uncoupled
        found = fit_plain(
            target, rank=rank, blocks_out=b_out, blocks_in=b_in, sweeps=sweeps, start=start
        )
    else:
        size = torch.linalg.vector_norm(target).clamp_min(torch.finfo(target.dtype).tiny)
        target = (target / size).to(dtype)  # of norm one: no range of float32 is lost
        start = None if start is None else _times(start, 1 / size).to(target)
        begun = _begun(target, rank, grid, effort.plain, start)
        problem = Coupled.of(target[0], outer.coupling, inner.coupling)
        found = _sweeps(problem, begun, effort.coupled)
        if start is not None:
            found = _no_worse(problem, found, start)
        found = _times(found.to(size), size)
    return _mapped(found, outer.unwhiten, inner.unwhiten).balanced()


def _begun(
    target: Tensor, rank: int, grid: tuple[int, int], sweeps: int, start: BlastFactors | None
) -> BlastFactors:
    """Where coupled sweeps begin: at a plain fit, which itself begins at `start` if there is one.

    A start of the full rank is no worse than that already. One with columns to add needs the plain
    sweeps as much as none: new columns are low rank, and it takes many sweeps to make use of s.
    """
    if start is not None and start.rank == rank:
        return start
    b_out, b_in = grid
    return fit_plain(
        target, rank=rank, blocks_out=b_out, blocks_in=b_in, sweeps=sweeps, start=start
    )


def _sweeps(problem: Coupled, begun: BlastFactors, sweeps: int) -> BlastFactors:
    """U, s and V are extrapolated together, as Nesterov does."""
    m, n = problem.products[0].shape
    diag_with_rows = n <= m  # s costs least beside the smaller moment
    last, point = _copied(begun), _copied(begun)
    best, best_loss, gaining, restarted = begun, float("inf"), 0, False
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
        else:  # without momentum no sweep loses ground
            last, point, gaining, restarted = _copied(best), _copied(best), 0, True
    return best


def _extrapolate_(last: BlastFactors, new: BlastFactors, momentum: float) -> None:
    """`last` becomes new + momentum (new - last)."""
    for before, after in zip(_parts(last), _parts(new), strict=True):
        torch.lerp(before, after, 1 + momentum, out=before)


def _no_worse(problem: Coupled, found: BlastFactors, start: BlastFactors) -> BlastFactors:
    """`start`, with columns of zeros, where the fit lost more than it."""
    if problem.loss(found) <= problem.loss(start):
        return found
    more = found.rank - start.rank
    return BlastFactors(*(functional.pad(part, (0, more)) for part in _parts(start)))


def _whitened(
    weight: Tensor, outer: BlockMetric, inner: BlockMetric, grid: tuple[int, int]
) -> Tensor:
    """(1, m, n) -> (1, b_out p, b_in q) with the roots of the diagonal blocks on both sides."""
    m, n = weight.shape[1:]
    p, q = block_length(m, grid[0]), block_length(n, grid[1])
    padded = functional.pad(weight, (0, grid[1] * q - n, 0, grid[0] * p - m))[0]
    rows = outer.whiten(padded.view(grid[0], p, -1)).flatten(0, 1)  # (b_out p, b_in q)
    columns = inner.whiten(rows.mT.reshape(grid[1], q, -1)).flatten(0, 1)
    return columns.mT.contiguous()[None]


def _mapped(factors: BlastFactors, left: _Map, right: _Map) -> BlastFactors:
    """U and V mapped, of a single weight."""
    return BlastFactors(left(factors.left[0])[None], factors.diag, right(factors.right[0])[None])


def _times(factors: BlastFactors, scale: Tensor) -> BlastFactors:
    return BlastFactors(factors.left * scale, factors.diag, factors.right)


def _parts(factors: BlastFactors) -> tuple[Tensor, Tensor, Tensor]:
    return factors.left, factors.diag, factors.right


def _copied(factors: BlastFactors) -> BlastFactors:
    return BlastFactors(*(part.clone() for part in _parts(factors)))


def _group(factors: BlastFactors | None, group: int) -> BlastFactors | None:
    if factors is None:
        return None
    return BlastFactors(*(part[group : group + 1] for part in _parts(factors)))
