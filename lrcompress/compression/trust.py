"""Whether the compressed network is what the plan promised, told on examples that chose nothing."""

from __future__ import annotations

from lrcompress.compression.measure import Divergence
from lrcompress.compression.report import CompressReport
from lrcompress.profiling.degenerate import ALIKE
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.unseen import SHARE

LARGEST_RATIO = 3.0  # of measured over predicted divergence, and of set aside over calibration
LARGEST_CHANGE = 0.05  # of first choices
SMALLEST_COSINE = 0.9  # a mean cosine below it is another embedding
LARGEST_APART = 0.1  # of the divergence between two examples, where nothing is chosen
SMALLEST_SEEN = 0.5  # of a head's classes
LARGEST_REMARKED = 2.0  # of measured over predicted and its inverse, without a word
NEGLIGIBLE = 1e-4  # divergence per example
NEGLIGIBLE_SHARE = 0.002  # of the divergence between two examples

FEWEST_CONFIRMING = 4  # examples; fewer say nothing of others
SET_ASIDE, CALIBRATION = "examples set aside", "the calibration data"

WHAT_TO_DO = "give more or more varied --data, a larger --budget, or --exclude layers at fault"


def doubts(report: CompressReport, profile: Profile) -> tuple[str, ...]:
    """Why the result should not be trusted, one plain sentence each; none if it may be.

    Measured on the examples that chose nothing, or on the calibration examples where none could be
    set aside.
    """
    found = report.held_out or report.calibration
    if found is None:
        return ()
    where = SET_ASIDE if report.held_out is not None else CALIBRATION
    said = [*_unpredicted(report, _as_predicted(report, found), where)]
    said += _unlike_calibration(report, found)
    said += _changed(report, found, where)
    if report.held_out is not None and report.calibration is not None and not said:
        said += _changed(report, report.calibration, CALIBRATION)
    said += [*_degenerate(profile), *_too_few(report), *_unseen(profile)]
    if not profile.degenerate:
        said += _alike(report)
    return tuple(f"not to be trusted: {reason}; {WHAT_TO_DO}" for reason in said)


def remarks(report: CompressReport) -> tuple[str, ...]:
    """What is off by more than twice, but too little to be doubted."""
    found = report.held_out_unrefitted or report.held_out
    predicted = report.predicted_divergence
    if found is None or not predicted or not found.mean > 0 or _unpredicted(report, found, ""):
        return ()
    ratio = found.mean / predicted
    negligible = max(found.mean, predicted) <= _negligible(found)
    if ratio <= LARGEST_REMARKED and (negligible or ratio >= 1 / LARGEST_REMARKED):
        return ()
    small = "; both are negligible" if negligible else ""
    return (
        f"the divergence measured on examples set aside{_before_refit(report)}, {found.mean:.3g}, "
        f"is {ratio:.2g} times the predicted {predicted:.3g}{small}",
    )


def _as_predicted(report: CompressReport, found: Divergence) -> Divergence:
    """What the prediction is held against: the plan carried out, before any refit."""
    before = report.held_out_unrefitted or report.calibration_unrefitted
    return found if before is None else before


def _before_refit(report: CompressReport) -> str:
    refitted = report.held_out_unrefitted or report.calibration_unrefitted
    return "" if refitted is None else " before the refit"


def _negligible(found: Divergence) -> float:
    """Divergence per example below which ratios mean nothing."""
    return max(NEGLIGIBLE, NEGLIGIBLE_SHARE * (found.apart or 0.0))


def _unpredicted(report: CompressReport, found: Divergence, where: str) -> list[str]:
    predicted, measured = report.predicted_divergence, found.mean
    if predicted is None or measured <= max(LARGEST_RATIO * predicted, _negligible(found)):
        return []
    times = f"{measured / predicted:.1f} times" if predicted > 0 else "more than"
    return [
        f"the divergence measured on {where}{_before_refit(report)}, {measured:.3g}, is {times} "
        f"the predicted {predicted:.3g}"
    ]


def _unlike_calibration(report: CompressReport, found: Divergence) -> list[str]:
    known = report.calibration
    if known is None or found is known:
        return []
    if found.mean <= max(LARGEST_RATIO * known.mean, _negligible(found)):
        return []
    return [
        f"the divergence on examples set aside, {found.mean:.3g}, is "
        f"{found.mean / max(known.mean, 1e-12):.1f} times that on the calibration data, "
        f"{known.mean:.3g}: the calibration data are too few"
    ]


def _too_few(report: CompressReport) -> list[str]:
    found = report.held_out
    if found is None:
        return ["no example could be set aside, so nothing tells what it does on others"]
    if found.examples >= FEWEST_CONFIRMING:
        return []
    return [f"{found.examples} examples set aside are too few to tell what it does on others"]


def _degenerate(profile: Profile) -> list[str]:
    void = "what is predicted and measured says nothing of other inputs"
    return [f"{reason}: {void}" for reason in profile.degenerate]


def _alike(report: CompressReport) -> list[str]:
    known = report.calibration
    if known is None or known.apart is None or known.apart > ALIKE:
        return []
    return ["the network gives the same output for all calibration examples"]


def _unseen(profile: Profile) -> list[str]:
    readout = profile.readout
    seen = 1.0 if readout is None else 1 - readout.unseen / SHARE
    if seen >= SMALLEST_SEEN:
        return []
    return [
        f"the calibration data show only {seen:.0%} of the classes as first "
        "choices, and the others cannot be measured"
    ]


def _changed(report: CompressReport, found: Divergence, where: str) -> list[str]:
    if found.top1_agreement is not None and 1 - found.top1_agreement > LARGEST_CHANGE:
        return [f"the first choice changes for {1 - found.top1_agreement:.1%} of {where}"]
    if report.objective == "cosine":
        cosine = 1 - found.per_position
        said = f"the mean cosine to the dense output is {cosine:.3f} on {where}"
        return [said] if cosine < SMALLEST_COSINE else []
    if found.top1_agreement is None and found.apart and found.mean > LARGEST_APART * found.apart:
        return [
            f"the output moves by {found.mean / found.apart:.0%} of what tells two examples apart, "
            f"on {where}"
        ]
    return []
