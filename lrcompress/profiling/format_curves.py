"""Loss curves of number formats: the dense weight and low rank, rounded once at a few sizes."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from lrcompress.errors import FitError, PlanError
from lrcompress.layers import LayerSpec
from lrcompress.metrics import Whitening
from lrcompress.number_formats import CastFormat, Format, parse_format
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import CurvePoint, Curves
from lrcompress.profiling.truncation import Truncation
from lrcompress.structures import Dense, Factors, LowRank, Quantised, Structure
from lrcompress.structures.large_svd import is_large
from lrcompress.structures.structure import FitTask

SHARES = (0.2, 0.5, 0.95)  # of the break-even rank


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
    curves = [_curve(task, format, [(Dense(), {"weight": weight})]) for format in formats]
    if "low_rank" in options.structures and not is_large(weight):
        truncation = Truncation.of(whitening.whiten(weight), whitening)
        ranks = sorted({max(1, int(share * spec.break_even_rank)) for share in SHARES})
        ranks = [rank for rank in ranks if rank <= spec.break_even_rank]
        fits = [(LowRank(rank), truncation.factors(rank)) for rank in ranks]
        curves += [_curve(task, format, fits) for format in formats if not _is_wide(format)]
    return tuple(curve for curve in curves if curve)


def _is_wide(format: Format) -> bool:
    """Whether the format cannot be smaller than the precision of an export."""
    return isinstance(format, CastFormat) and format.dtype.itemsize > 2


def _curve(
    task: FitTask, format: Format, fits: Sequence[tuple[Structure, Factors]]
) -> tuple[CurvePoint, ...]:
    """Return the losses of the fitted structures in the format; they never grow with size."""
    points: list[CurvePoint] = []
    for structure, factors in fits:
        made = Quantised(structure, (format,))
        try:
            made.check(task.spec)
            rounded = made.round_factors(factors, task)
        except (PlanError, FitError):
            break
        loss = made.loss(rounded, task.weight, task.whitening, task.spec)
        points.append(CurvePoint(made, min([loss, *(p.loss for p in points)])))
    return tuple(points)
