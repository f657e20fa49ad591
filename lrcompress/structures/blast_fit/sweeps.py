"""Accelerated alternating least squares: sweeps over U, s and V whose best loss never grows."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.structures.blast_fit.alternating import (
    grams,
    solve_left,
    solve_left_and_diag,
    worth_keeping,
)
from lrcompress.structures.blast_fit.factors import BlastFactors

# The SVD is nearly a saddle point, which the first sweeps leave slowly. A momentum of 3, 3/2, 1
# there saves two to four sweeps of thirty.
_HASTE = 3.0


@dataclass(frozen=True, eq=False)
class Sweep:
    """Factors after a sweep. `loss` (batch,): squared Frobenius distance to the weight."""

    factors: BlastFactors
    loss: Tensor


def alternate(weight: Tensor, start: BlastFactors) -> Iterator[Sweep]:
    """Yield the best factors after each sweep, endlessly. weight: (batch, b_out p, b_in q).

    A sweep solves for U, improves s, and solves for V: two products with the weight. The next sweep
    does not use U, so only s and V are extrapolated, with Nesterov momentum (Mitchell, Ye,
    De Sterck 2020, for the CP decomposition). If a weight's loss grows, it returns to its best
    factors and restarts its momentum.
    """
    total = weight.square().sum((1, 2))
    best = _sweep(weight, start, total)
    del start  # frees memory: half as large as the weight
    yield best
    point = best.factors
    gaining = torch.zeros_like(total)  # consecutive sweeps that gained
    for count in itertools.count(1):
        new = _sweep(weight, point, total)
        gained = new.loss <= best.loss
        gaining = torch.where(gained, gaining + 1, 0)
        momentum = ((gaining + 1) / (gaining + 3)).clamp_min(_HASTE / count)
        momentum = torch.where(gained, momentum, 0.0)
        kept = new if bool(gained.all()) else chosen(gained, new, best)
        point = _extrapolated(best.factors, kept.factors, momentum)
        best = kept
        yield best


def until_flat(
    sweeps: Iterator[Sweep], limit: int, *, worthwhile: float, patience: int = 5
) -> Sweep:
    """Run at most `limit` sweeps and return the last.

    Stops early if no loss falls by the relative amount `worthwhile` over `patience` sweeps.
    """
    last = next(sweeps)
    mark = last.loss
    for count, last in enumerate(itertools.islice(sweeps, limit - 1), 1):
        if count % patience == 0:
            if bool((last.loss >= (1 - worthwhile) * mark).all()):
                break
            mark = last.loss
    return last


def chosen(first: Tensor, a: Sweep, b: Sweep) -> Sweep:
    """Choose `a` for each weight where `first` (batch,) is true, else `b`."""
    mask = first[:, None, None, None]
    parts = (torch.where(mask, x, y) for x, y in zip(a.factors, b.factors, strict=True))
    return Sweep(BlastFactors(*parts), torch.where(first, a.loss, b.loss))


def _sweep(weight: Tensor, point: BlastFactors, total: Tensor) -> Sweep:
    gram = grams(point.right)
    left = solve_left(weight, point, gram)
    kept = gram if worth_keeping(gram, weight) else None
    del gram  # frees memory: half as large as the weight, for eight blocks
    point = point._replace(left=left)
    found, gain = solve_left_and_diag(weight.mT, point.transposed, kept)
    return Sweep(found.transposed, (total - gain).clamp_min(0))


def _extrapolated(before: BlastFactors, now: BlastFactors, momentum: Tensor) -> BlastFactors:
    beyond = 1 + momentum[:, None, None, None]
    return now._replace(
        diag=torch.lerp(before.diag, now.diag, beyond),
        right=torch.lerp(before.right, now.right, beyond),
    )
