"""Whether the compressed network is what the plan promised, told on examples that chose nothing."""

from __future__ import annotations

from lrcompress.compression.measure import Divergence
from lrcompress.compression.report import CompressReport

LARGEST_RATIO = 3.0  # of measured over predicted divergence, and of set aside over calibration
LARGEST_CHANGE = 0.05  # of first choices
SMALLEST_COSINE = 0.9  # a mean cosine below it is another embedding
NEGLIGIBLE = 1e-4  # divergence per example, below which ratios mean nothing

WHAT_TO_DO = "give more or more varied --data, a larger --budget, or --exclude layers at fault"


def doubts(report: CompressReport) -> tuple[str, ...]:
    """Why the result should not be trusted, one plain sentence each; none if it may be.

    Measured on the examples that chose nothing, or on the calibration examples where none could be
    set aside.
    """
    found = report.held_out or report.calibration
    if found is None:
        return ()
    where = "examples set aside" if report.held_out is not None else "the calibration data"
    said = [*_unpredicted(report, found, where), *_unlike_calibration(report, found)]
    said += _changed(report, found, where)
    return tuple(f"not to be trusted: {reason}; {WHAT_TO_DO}" for reason in said)


def _unpredicted(report: CompressReport, found: Divergence, where: str) -> list[str]:
    predicted, measured = report.predicted_divergence, found.mean
    if measured <= max(LARGEST_RATIO * predicted, NEGLIGIBLE):
        return []
    times = f"{measured / predicted:.1f} times" if predicted > 0 else "more than"
    return [
        f"the divergence measured on {where}, {measured:.3g}, is {times} the predicted "
        f"{predicted:.3g}"
    ]


def _unlike_calibration(report: CompressReport, found: Divergence) -> list[str]:
    known = report.calibration
    if known is None or found is known:
        return []
    if found.mean <= max(LARGEST_RATIO * known.mean, NEGLIGIBLE):
        return []
    return [
        f"the divergence on examples set aside, {found.mean:.3g}, is "
        f"{found.mean / max(known.mean, 1e-12):.1f} times that on the calibration data, "
        f"{known.mean:.3g}: the calibration data are too few"
    ]


def _changed(report: CompressReport, found: Divergence, where: str) -> list[str]:
    if found.top1_agreement is not None and 1 - found.top1_agreement > LARGEST_CHANGE:
        return [f"the first choice changes for {1 - found.top1_agreement:.1%} of {where}"]
    if report.objective == "cosine" and 1 - found.mean < SMALLEST_COSINE:
        return [f"the mean cosine to the dense output is {1 - found.mean:.3f} on {where}"]
    return []
