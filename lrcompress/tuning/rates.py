"""A learning rate by trial: short trainings from the start, judged on held-out examples.

How far factors may move depends on how close they are already, on their scales and on how many
steps there are, so that no constant suits every network (Smith 2017 ranges over rates likewise).
"""

from __future__ import annotations

import logging

from lrcompress.progress import Progress
from lrcompress.tuning.checkpoint import NoCheckpoints, Standing
from lrcompress.tuning.course import Course
from lrcompress.tuning.loop import Loop
from lrcompress.tuning.report import HeldOut

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
FIRST = 2  # of RATES: what suits most
ENOUGH = 1 / 3  # of the best gain
TRIAL, SHORTEST_TRIAL, LONGEST_TRIAL = 0.05, 4, 20  # share of the steps, steps

log = logging.getLogger(__name__)


def chosen_rate(course: Course, steps: int, start: float, progress: Progress) -> float:
    """Of RATES the one above the largest whose short training gains a fair part of the best gain.

    Few steps favour small rates, with which a longer training gets less far: Adam's first steps are
    as long in directions of mere noise as in any other. On networks of text and images a training
    of 100 steps or more ended best at three times the rate that its trials did; where it does not,
    the loop goes back and slows down. The weights are given back as they were.
    """
    length = trial_length(steps)
    before = course.weights()
    tried: dict[int, float] = {}

    def value(place: int) -> float:
        if place not in tried:
            course.set_weights_(before)
            standing = Standing("", length, RATES[place], history=(HeldOut(0, start),))
            loop = Loop(course, standing, NoCheckpoints(), on_trial=True)
            with progress.stage(f"try learning rate {RATES[place]:g}", 1) as shown:
                tried[place] = loop.straight_()
                shown.advance()
        return tried[place]

    place = FIRST
    if value(place) < start:
        while place + 1 < len(RATES) and value(place + 1) < start:
            place += 1
    else:
        while place > 0 and not value(place) < start:
            place -= 1
    course.set_weights_(before)
    for k, result in sorted(tried.items()):
        log.debug("learning rate %g: %.4g after %d steps", RATES[k], result, length)
    gains = {k: start - result for k, result in tried.items()}
    enough = ENOUGH * max(gains.values())
    found = [k for k, gain in gains.items() if gain >= enough > 0]
    return RATES[min(max(found) + 1, len(RATES) - 1) if found else place]


def trial_length(steps: int) -> int:
    return max(SHORTEST_TRIAL, min(round(TRIAL * steps), LONGEST_TRIAL))
