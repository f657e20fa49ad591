"""A learning rate by trial: short trainings from the start, judged on held-out examples.

How far factors may move depends on how close they are already, on their scales and on how many
steps there are, so that no constant suits every network (Smith 2017 ranges over rates likewise).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isfinite

from lrcompress.progress import Progress
from lrcompress.tuning.checkpoint import NoCheckpoints, TrainState
from lrcompress.tuning.report import HeldOut
from lrcompress.tuning.training_loop import Loop
from lrcompress.tuning.training_setup import TrainingSetup

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
FIRST = 2  # of RATES: what suits most
LONG = 100  # steps that make up for a bad beginning
BEARABLE = 1.5  # times the start's measure after a trial, for long trainings
ENOUGH = 1 / 3  # of the best gain of a trial, for short ones
TRIAL, SHORTEST_TRIAL, LONGEST_TRIAL = 0.05, 4, 20  # share of the steps, steps

log = logging.getLogger(__name__)


def chosen_rate(course: TrainingSetup, steps: int, start: float, progress: Progress) -> float:
    """Of RATES the largest whose short training does little harm; the smallest if all do much.

    What a trial gains says little of a long training: Adam's first steps are as long in directions
    of mere noise as in any other, and what they lose there comes right as the rate falls. But a
    rate that ends 100 steps or more worse than a smaller one shows in a trial of five: it was at 2
    to 5 times the start's measure, and the best rate at 0.8 to 1.3 times (transformers of text and
    images, a CNN). A shorter training takes the largest rate that gains a fair part of what the
    best gains; so does one judged by a loss of its own, of which half as much again may be all that
    there is to lose. The weights are given back as they were.
    """
    length, long = trial_length(steps), steps >= LONG and course.objective.judged_by_divergence
    limit = BEARABLE * start if long else start
    before = course.weights()
    tried: dict[int, float] = {}

    def bearable(place: int) -> bool:
        course.set_weights_(before)
        standing = TrainState("", length, RATES[place], history=(HeldOut(0, start),))
        loop = Loop(course, standing, NoCheckpoints(), on_trial=True)
        with progress.stage(f"try learning rate {RATES[place]:g}", 1) as shown:
            value = loop.straight_()
            shown.advance()
        tried[place] = value if isfinite(value) else float("inf")
        log.debug("learning rate %g: %.4g after %d steps", RATES[place], tried[place], length)
        return tried[place] <= limit

    place = FIRST
    if bearable(place):
        while place + 1 < len(RATES) and bearable(place + 1):
            place += 1
    else:
        place -= 1
        while place > 0 and not bearable(place):
            place -= 1
    course.set_weights_(before)
    return RATES[place if long else _gaining(tried, start, place)]


def _gaining(tried: Mapping[int, float], start: float, otherwise: int) -> int:
    """The largest place whose trial gains enough."""
    gains = {place: start - value for place, value in tried.items()}
    enough = ENOUGH * max(gains.values())
    return max((place for place, gain in gains.items() if gain >= enough > 0), default=otherwise)


def trial_length(steps: int) -> int:
    return max(SHORTEST_TRIAL, min(round(TRIAL * steps), LONGEST_TRIAL))
