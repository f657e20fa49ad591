"""Checks on held-out examples whether the compressed network is what the plan promised.

A doubt says why the result should not be used without a check. Most doubts mean that the result
cannot be judged: too few examples, classes that no example shows, a prediction that did not hold.
A severe doubt means that the result is known to be bad, or that the data allow no measurement.
Only severe doubts make a command fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lrcompress.compression.measure import Divergence
from lrcompress.compression.report import CompressReport
from lrcompress.profiling.degenerate_data import ALIKE
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.unseen_classes import SHARE

LARGEST_RATIO = 3.0  # of divergences: measured / predicted, and held-out / calibration
LARGEST_CHANGE = 0.05  # share of top-1 predictions that change
SMALLEST_COSINE = 0.9  # mean cosine to the dense output
LARGEST_APART = 0.1  # of the divergence between two examples, for outputs without top-1
SMALLEST_SEEN = 0.5  # share of a head's classes
LARGEST_REMARKED = 2.0  # measured / predicted, or its inverse, without a remark
NEGLIGIBLE = 1e-4  # divergence per example
NEGLIGIBLE_SHARE = 0.002  # of the divergence between two examples
FEWEST_CONFIRMING = 4  # examples; fewer say nothing about others

# Severe: most top-1 predictions change; the embedding's angle to the dense one is closer to 90
# degrees than to 0; the output is as far from the dense one as a constant output (the mean over
# all examples) would be, which is half of the squared distance between two examples
FEWEST_KEPT = 0.5  # share of top-1 predictions that stay
SEVERE_COSINE = 0.5
SEVERE_APART = 0.5  # of the divergence between two examples
SMALLEST_COLLAPSE = 1e-3  # divergence per position; less is no collapse if examples are alike

SET_ASIDE, CALIBRATION = "examples set aside", "the calibration data"
TUNED = "held-out examples after tuning"

WHAT_TO_DO = "give more or more varied --data, a larger --budget, or --exclude layers at fault"


@dataclass(frozen=True)
class Doubt:
    said: str  # message, with what to do
    severe: bool = False

    @classmethod
    def because(cls, reason: str, *, severe: bool = False) -> Doubt:
        return cls(f"not to be trusted: {reason}; {WHAT_TO_DO}", severe)


def doubts(report: CompressReport, profile: Profile) -> tuple[Doubt, ...]:
    """Return why the result should not be trusted; empty if it can be.

    It is measured on the held-out examples, or on the calibration examples if there are none.
    """
    found = report.held_out or report.calibration
    if found is None:
        return ()
    where = SET_ASIDE if report.held_out is not None else CALIBRATION
    # The prediction is of the plan, before any refit
    changed = [*_changed(report.objective, found, where)]
    given = [*_unpredicted(report, _unrefitted(report) or found, where)]
    given += [*_unlike_calibration(report, found), *changed]
    if report.held_out is not None and report.calibration is not None and not given:
        given += _changed(report.objective, report.calibration, CALIBRATION)
    # If classes that the data show are lost already, those that they do not show are worse
    unseen = [replace(doubt, severe=bool(changed)) for doubt in _unseen(profile)]
    given += [*_degenerate(profile), *_too_few(report), *unseen]
    if not profile.degenerate:
        given += _alike(report)
    return tuple(given)


def void_doubts(profile: Profile) -> tuple[Doubt, ...]:
    """Return the doubts about data on which nothing can be measured, even after training."""
    return tuple(doubt for doubt in _degenerate(profile) if doubt.severe)


def tuned_doubts(objective: str, found: Divergence) -> tuple[Doubt, ...]:
    """Return the doubts about a tuned compressed network, on its held-out examples."""
    return tuple(_changed(objective, found, TUNED))


def remarks(report: CompressReport) -> tuple[str, ...]:
    """Return remarks on a prediction that is wrong by more than twice, but gives no doubt."""
    found = report.held_out_unrefitted or report.held_out
    predicted = report.predicted_divergence
    if found is None or not predicted or not found.mean > 0 or any(_unpredicted(report, found, "")):
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


def _unrefitted(report: CompressReport) -> Divergence | None:
    return report.held_out_unrefitted or report.calibration_unrefitted


def _before_refit(report: CompressReport) -> str:
    return " before the refit" if _unrefitted(report) else ""


def _negligible(found: Divergence) -> float:
    """Return the divergence per example below which ratios mean nothing."""
    return max(NEGLIGIBLE, NEGLIGIBLE_SHARE * (found.apart or 0.0))


def _unpredicted(report: CompressReport, found: Divergence, where: str) -> Iterator[Doubt]:
    predicted, measured = report.predicted_divergence, found.mean
    if predicted is None or measured <= max(LARGEST_RATIO * predicted, _negligible(found)):
        return
    times = f"{measured / predicted:.1f} times" if predicted > 0 else "more than"
    yield Doubt.because(
        f"the divergence measured on {where}{_before_refit(report)}, {measured:.3g}, is {times} "
        f"the predicted {predicted:.3g}"
    )


def _unlike_calibration(report: CompressReport, found: Divergence) -> Iterator[Doubt]:
    known = report.calibration
    if known is None or found is known:
        return
    if found.mean > max(LARGEST_RATIO * known.mean, _negligible(found)):
        yield Doubt.because(
            f"the divergence on examples set aside, {found.mean:.3g}, is "
            f"{found.mean / max(known.mean, 1e-12):.1f} times that on the calibration data, "
            f"{known.mean:.3g}: the calibration data are too few"
        )


def _too_few(report: CompressReport) -> Iterator[Doubt]:
    found = report.held_out
    if found is None:
        yield Doubt.because("no example could be set aside, so its behaviour on others is unknown")
    elif found.examples < FEWEST_CONFIRMING:
        yield Doubt.because(
            f"{found.examples} examples set aside are too few to show its behaviour on others"
        )


def _degenerate(profile: Profile) -> Iterator[Doubt]:
    void = "the prediction and the measurement say nothing about other inputs"
    for reason in profile.degenerate:
        yield Doubt.because(f"{reason}: {void}", severe=True)
    for reason in profile.thin:
        yield Doubt.because(reason)


def _alike(report: CompressReport) -> Iterator[Doubt]:
    known = report.calibration
    if known is not None and known.apart is not None and known.apart <= ALIKE:
        why = "the network gives the same output for all calibration examples"
        yield Doubt.because(why, severe=True)


def _unseen(profile: Profile) -> Iterator[Doubt]:
    readout = profile.readout
    seen = 1.0 if readout is None else 1 - readout.unseen / SHARE
    if seen < SMALLEST_SEEN:
        yield Doubt.because(
            f"the calibration data show only {seen:.0%} of the classes as first "
            "choices, and the others cannot be measured"
        )


def _changed(objective: str, found: Divergence, where: str) -> Iterator[Doubt]:
    """Yield how the output changed, in the first of the criteria that applies."""
    apart = found.mean / found.apart if found.apart and found.apart > ALIKE else 0.0
    collapsed = apart > SEVERE_APART and found.per_position > SMALLEST_COLLAPSE
    kept = found.top1_agreement
    ties = found.per_position <= NEGLIGIBLE  # changes are then near ties
    if kept is not None and 1 - kept > LARGEST_CHANGE and not ties:
        why = f"the first choice changes for {1 - kept:.1%} of {where}"
        yield Doubt.because(why, severe=collapsed or kept < FEWEST_KEPT)
    elif objective == "cosine" and 1 - found.per_position < SMALLEST_COSINE:
        cosine = 1 - found.per_position
        why = f"the mean cosine to the dense output is {cosine:.3f} on {where}"
        yield Doubt.because(why, severe=collapsed or cosine < SEVERE_COSINE)
    elif collapsed or (kept is None and objective != "cosine" and apart > LARGEST_APART):
        yield Doubt.because(
            f"the output changes by {apart:.0%} of the difference between two examples, on {where}",
            severe=collapsed,
        )
