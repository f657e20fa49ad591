"""Loss curves of number formats: the dense weight and low rank, rounded once at a few sizes."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import accumulate

import torch

from lrcompress.errors import FitError, PlanError
from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.number_formats import Format, parse_format
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import CurvePoint, Curves
from lrcompress.profiling.truncation import Truncation
from lrcompress.structures import Dense, Factors, LowRank, Quantised
from lrcompress.structures.large_svd import is_large
from lrcompress.structures.structure import FitTask

SHARES = (0.2, 0.5, 0.95)  # of the break-even rank
REFERENCE_BITS = 4.5  # of the format that is measured for low rank


def format_curves(
    weight: torch.Tensor, whitening: Whitening, spec: LayerSpec, options: ProfileOptions
) -> Curves:
    """Return one curve for each format of the dense weight and of low rank, if it is asked for.

    weight: (groups, m, n), float64. A format that the layer does not take has no curve.
    """
    formats = [parse_format(text) for text in options.formats]
    if not formats or not bool(torch.isfinite(weight).all()):
        return ()
    task = FitTask(weight, whitening, spec, quick=True)
    dense = {format: _rounded_loss(task, Quantised(Dense(), (format,))) for format in formats}
    taken = {format: loss for format, loss in dense.items() if loss is not None}
    curves: list[tuple[CurvePoint, ...]] = [
        (CurvePoint(Quantised(Dense(), (format,)), loss),) for format, loss in taken.items()
    ]
    if "low_rank" in options.structures and taken and not is_large(weight):
        curves += _low_rank_curves(task, taken)
    return tuple(curves)


def _low_rank_curves(task: FitTask, dense: Mapping[Format, float]) -> list[tuple[CurvePoint, ...]]:
    """Return the curves of low rank in the formats, whose losses for the dense weight are given.

    Only one format is measured. What rounding adds in another one is taken to be as many times
    larger or smaller as it is for the dense weight (benchmarks/bits.py compares).
    """
    spec, whitening = task.spec, task.whitening
    reference = min(dense, key=lambda format: abs(format.bits_per_weight - REFERENCE_BITS))
    truncation = Truncation.of(whitening.whiten(task.weight), whitening)
    ranks = sorted({max(1, int(share * spec.break_even_rank)) for share in SHARES})
    added: dict[int, tuple[float, float]] = {}
    for rank in ranks:
        if rank > spec.break_even_rank:
            continue
        factors = truncation.factors(rank)
        unrounded = LowRank(rank).loss(factors, task.weight, whitening, spec)
        made = Quantised(LowRank(rank), (reference,))
        total = _rounded_loss(task, made, factors)
        if total is not None:
            added[rank] = unrounded, max(total - unrounded, 0.0)
    curves = []
    for format, loss in dense.items():
        times = loss / dense[reference] if dense[reference] > 0 else 1.0
        losses = [(rank, before + more * times) for rank, (before, more) in added.items()]
        lowest = list(accumulate((value for _, value in losses), min))
        curves.append(
            tuple(
                CurvePoint(Quantised(LowRank(rank), (format,)), loss)
                for (rank, _), loss in zip(losses, lowest, strict=True)
            )
        )
    return [curve for curve in curves if curve]


def _rounded_loss(
    task: FitTask, structure: Quantised, factors: Factors | None = None
) -> float | None:
    """Return the loss of the structure; None if the layer does not take it."""
    try:
        structure.check(task.spec)
        rounded = structure.round_factors(factors or {"weight": task.weight}, task)
    except (PlanError, FitError):
        return None
    return structure.loss(rounded, task.weight, task.whitening, task.spec)
