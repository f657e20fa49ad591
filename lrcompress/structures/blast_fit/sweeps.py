"""Accelerated alternating least squares: sweeps over U, s and V that never lose ground."""

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

# The SVD is nearly a saddle, which the first sweeps leave slowly: momentum of 3, 3/2, 1 there saves
# two to four sweeps of thirty.
_HASTE = 3.0


@dataclass(frozen=True, eq=False)
class Sweep:
    """`loss` (batch,): squared Frobenius distance of the factors to the weight."""

    factors: BlastFactors
    loss: Tensor


def alternate(weight: Tensor, start: BlastFactors) -> Iterator[Sweep]:
    """The best factors after each sweep, without end. weight: (batch, b_out p, b_in q).

    A sweep solves for U, improves s, and solves for V: two products with the weight. U is forgotten
    by the next one, so s and V alone are extrapolated, as Nesterov does (Mitchell, Ye, De Sterck
    2020, for the CP decomposition). A weight whose sweep lost ground goes back to its best factors
    and begins to gather momentum anew.
    """
    total = weight.square().sum((1, 2))
    best = _sweep(weight, start, total)
    del start  # half as large as the weight
    yield best
    point = best.factors
    gaining = torch.zeros_like(total)  # sweeps in a row that gained
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
    """After at most `limit` sweeps; fewer once no loss falls by the share `worthwhile` of itself
    over `patience` sweeps."""
    last = next(sweeps)
    mark = last.loss
    for count, last in enumerate(itertools.islice(sweeps, limit - 1), 1):
        if count % patience == 0:
            if bool((last.loss >= (1 - worthwhile) * mark).all()):
                break
            mark = last.loss
    return last


def chosen(first: Tensor, a: Sweep, b: Sweep) -> Sweep:
    """Of each weight `a` where `first` (batch,) says so, otherwise `b`."""
    mask = first[:, None, None, None]
    return Sweep(
        BlastFactors(
            torch.where(mask, a.factors.left, b.factors.left),
            torch.where(mask, a.factors.diag, b.factors.diag),
            torch.where(mask, a.factors.right, b.factors.right),
        ),
        torch.where(first, a.loss, b.loss),
    )


def _sweep(weight: Tensor, point: BlastFactors, total: Tensor) -> Sweep:
    gram = grams(point.right)
    left = solve_left(weight, point, gram)
    kept = gram if worth_keeping(gram, weight) else None
    del gram  # half as large as the weight, for eight blocks
    point = BlastFactors(left, point.diag, point.right)
    half = solve_left_and_diag(weight.mT, point.transposed, kept)
    factors = BlastFactors(half.left, half.diag, left).transposed
    return Sweep(factors, (total - half.gain).clamp_min(0))


def _extrapolated(before: BlastFactors, now: BlastFactors, momentum: Tensor) -> BlastFactors:
    beyond = 1 + momentum[:, None, None, None]
    return BlastFactors(
        now.left,
        torch.lerp(before.diag, now.diag, beyond),
        torch.lerp(before.right, now.right, beyond),
    )
