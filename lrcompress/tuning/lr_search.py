"""Learning-rate search: short trainings from the start, compared on held-out examples.

No constant suits every network: the best rate depends on how close the factors already are, on
their scales and on the number of steps (Smith 2017 also tests a range of rates).
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from math import isfinite

from lrcompress.checkpoint import NoCheckpoints
from lrcompress.progress import Progress
from lrcompress.tuning.checkpoint import TrainState
from lrcompress.tuning.report import HeldOut
from lrcompress.tuning.training_loop import Loop
from lrcompress.tuning.training_setup import TrainingSetup

RATES = (3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
FIRST = 2  # index of the rate tried first, which suits most networks
LONG = 100  # a training of this many steps recovers from a bad beginning
ACCEPTABLE = 1.5  # limit after a trial for long trainings, times the start's measure
ENOUGH = 1 / 3  # of the best trial's gain, for short trainings
TRIAL, SHORTEST_TRIAL, LONGEST_TRIAL = 0.05, 4, 20  # share of the steps, fewest and most steps

log = logging.getLogger(__name__)


def chosen_rate(setup: TrainingSetup, steps: int, start: float, progress: Progress) -> float:
    """Return the largest of RATES whose trial does little harm; the smallest if all do much.

    A trial's gain does not predict a long training: Adam's first steps are as long in noise
    directions as in others, and that loss recovers as the rate falls. But a trial of five steps
    does show a rate that is worse than a smaller one after 100 steps or more: such rates were at
    2 to 5 times the start's measure, the best rate at 0.8 to 1.3 times (text and image
    transformers, a CNN). A shorter training takes the largest rate that gains at least ENOUGH of
    the best trial's gain. So does an objective measured by its own loss, where ACCEPTABLE times the
    start may already be as bad as it gets. The weights are restored.
    """
    length, long = trial_length(steps), steps >= LONG and setup.objective.measured_by_divergence
    limit = ACCEPTABLE * start if long else start
    before = setup.weights()
    tried: dict[int, float] = {}

    def acceptable(place: int) -> bool:
        setup.set_weights_(before)
        train_state = TrainState("", length, RATES[place], history=(HeldOut(0, start),))
        loop = Loop(setup, train_state, NoCheckpoints(), on_trial=True)
        with progress.stage(f"try learning rate {RATES[place]:g}", 1) as shown:
            value = loop.run_without_evaluation_()
            shown.advance()
        tried[place] = value if isfinite(value) else float("inf")
        log.debug("learning rate %g: %.4g after %d steps", RATES[place], tried[place], length)
        return tried[place] <= limit

    place = FIRST
    if acceptable(place):
        while place + 1 < len(RATES) and acceptable(place + 1):
            place += 1
    else:
        place -= 1
        while place > 0 and not acceptable(place):
            place -= 1
    setup.set_weights_(before)
    return RATES[place if long else _gaining(tried, start, place)]


def _gaining(tried: Mapping[int, float], start: float, otherwise: int) -> int:
    """Return the largest index in RATES whose trial gains enough."""
    gains = {place: start - value for place, value in tried.items()}
    enough = ENOUGH * max(gains.values())
    return max((place for place, gain in gains.items() if gain >= enough > 0), default=otherwise)


def trial_length(steps: int) -> int:
    return max(SHORTEST_TRIAL, min(round(TRIAL * steps), LONGEST_TRIAL))
