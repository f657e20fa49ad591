"""Whether the compressed network is what the plan promised, told on examples that chose nothing.

A doubt says why the result should not be used unseen. Most doubts are of what cannot be judged: too
few examples, classes that no example shows, a prediction that did not hold. A severe doubt is of a
result that is known to be bad, or of data on which nothing at all was measured; it alone makes a
command fail.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from lrcompress.compression.measure import Divergence
from lrcompress.compression.report import CompressReport
from lrcompress.profiling.degenerate_data import ALIKE
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.unseen_classes import SHARE

LARGEST_RATIO = 3.0  # of measured over predicted divergence, and of set aside over calibration
LARGEST_CHANGE = 0.05  # of first choices
SMALLEST_COSINE = 0.9  # a mean cosine below it is another embedding
LARGEST_APART = 0.1  # of the divergence between two examples, where nothing is chosen
SMALLEST_SEEN = 0.5  # of a head's classes
LARGEST_REMARKED = 2.0  # of measured over predicted and its inverse, without a word
NEGLIGIBLE = 1e-4  # divergence per example
NEGLIGIBLE_SHARE = 0.002  # of the divergence between two examples
FEWEST_CONFIRMING = 4  # examples; fewer say nothing of others

# Severe: most choices are other ones; the embedding is nearer to a right angle than to the dense
# one; the output is as far from the dense one as a constant, the mean over all examples, would be:
# half of the squared distance between two examples.
FEWEST_KEPT = 0.5  # of first choices
SEVERE_COSINE = 0.5
SEVERE_APART = 0.5  # of the divergence between two examples
SMALLEST_COLLAPSE = 1e-3  # divergence per position: less is no collapse where examples are alike

SET_ASIDE, CALIBRATION = "examples set aside", "the calibration data"
TUNED = "held-out examples after tuning"

WHAT_TO_DO = "give more or more varied --data, a larger --budget, or --exclude layers at fault"


@dataclass(frozen=True)
class Doubt:
    said: str  # a plain sentence, with what to do
    severe: bool = False


@dataclass(frozen=True)
class _Reason:
    why: str
    severe: bool = False


def doubts(report: CompressReport, profile: Profile) -> tuple[Doubt, ...]:
    """Why the result should not be trusted; none if it may be.

    Measured on the examples that chose nothing, or on the calibration examples where none could be
    set aside.
    """
    found = report.held_out or report.calibration
    if found is None:
        return ()
    where = SET_ASIDE if report.held_out is not None else CALIBRATION
    reasons = [*_unpredicted(report, _as_predicted(report, found), where)]
    reasons += [*_unlike_calibration(report, found), *_changed(report.objective, found, where)]
    if report.held_out is not None and report.calibration is not None and not reasons:
        reasons += _changed(report.objective, report.calibration, CALIBRATION)
    reasons += [*_degenerate(profile), *_too_few(report), *_unseen(profile)]
    if not profile.degenerate:
        reasons += _alike(report)
    return tuple(map(_doubt, reasons))


def void_doubts(profile: Profile) -> tuple[Doubt, ...]:
    """Those of data on which nothing can be measured: no later training mends that."""
    return tuple(_doubt(reason) for reason in _degenerate(profile) if reason.severe)


def tuned_doubts(objective: str, found: Divergence) -> tuple[Doubt, ...]:
    """Of a network that was tuned after it was compressed, on the examples that judged it."""
    return tuple(map(_doubt, _changed(objective, found, TUNED)))


def _doubt(reason: _Reason) -> Doubt:
    return Doubt(f"not to be trusted: {reason.why}; {WHAT_TO_DO}", reason.severe)


def remarks(report: CompressReport) -> tuple[str, ...]:
    """What is off by more than twice, but too little to be doubted."""
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


def _unpredicted(report: CompressReport, found: Divergence, where: str) -> Iterator[_Reason]:
    predicted, measured = report.predicted_divergence, found.mean
    if predicted is None or measured <= max(LARGEST_RATIO * predicted, _negligible(found)):
        return
    times = f"{measured / predicted:.1f} times" if predicted > 0 else "more than"
    yield _Reason(
        f"the divergence measured on {where}{_before_refit(report)}, {measured:.3g}, is {times} "
        f"the predicted {predicted:.3g}"
    )


def _unlike_calibration(report: CompressReport, found: Divergence) -> Iterator[_Reason]:
    known = report.calibration
    if known is None or found is known:
        return
    if found.mean > max(LARGEST_RATIO * known.mean, _negligible(found)):
        yield _Reason(
            f"the divergence on examples set aside, {found.mean:.3g}, is "
            f"{found.mean / max(known.mean, 1e-12):.1f} times that on the calibration data, "
            f"{known.mean:.3g}: the calibration data are too few"
        )


def _too_few(report: CompressReport) -> Iterator[_Reason]:
    found = report.held_out
    if found is None:
        yield _Reason("no example could be set aside, so nothing tells what it does on others")
    elif found.examples < FEWEST_CONFIRMING:
        yield _Reason(
            f"{found.examples} examples set aside are too few to tell what it does on others"
        )


def _degenerate(profile: Profile) -> Iterator[_Reason]:
    void = "what is predicted and measured says nothing of other inputs"
    for reason in profile.degenerate:
        yield _Reason(f"{reason}: {void}", severe=True)
    for reason in profile.thin:
        yield _Reason(reason)


def _alike(report: CompressReport) -> Iterator[_Reason]:
    known = report.calibration
    if known is not None and known.apart is not None and known.apart <= ALIKE:
        why = "the network gives the same output for all calibration examples"
        yield _Reason(why, severe=True)


def _unseen(profile: Profile) -> Iterator[_Reason]:
    readout = profile.readout
    seen = 1.0 if readout is None else 1 - readout.unseen / SHARE
    if seen < SMALLEST_SEEN:
        yield _Reason(
            f"the calibration data show only {seen:.0%} of the classes as first "
            "choices, and the others cannot be measured"
        )


def _changed(objective: str, found: Divergence, where: str) -> Iterator[_Reason]:
    """What the output does differently, in the first of the terms that suit it."""
    apart = found.mean / found.apart if found.apart and found.apart > ALIKE else 0.0
    collapsed = apart > SEVERE_APART and found.per_position > SMALLEST_COLLAPSE
    kept = found.top1_agreement
    ties = found.per_position <= NEGLIGIBLE  # what changes then was a near draw
    if kept is not None and 1 - kept > LARGEST_CHANGE and not ties:
        why = f"the first choice changes for {1 - kept:.1%} of {where}"
        yield _Reason(why, severe=collapsed or kept < FEWEST_KEPT)
    elif objective == "cosine" and 1 - found.per_position < SMALLEST_COSINE:
        cosine = 1 - found.per_position
        why = f"the mean cosine to the dense output is {cosine:.3f} on {where}"
        yield _Reason(why, severe=collapsed or cosine < SEVERE_COSINE)
    elif collapsed or (kept is None and objective != "cosine" and apart > LARGEST_APART):
        yield _Reason(
            f"the output moves by {apart:.0%} of what tells two examples apart, on {where}",
            severe=collapsed,
        )
