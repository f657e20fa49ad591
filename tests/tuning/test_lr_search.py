"""Learning rates from trials: which of them a training takes."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any, cast

import pytest

from lrcompress.progress import SILENT
from lrcompress.tuning import lr_search as rates
from lrcompress.tuning.lr_search import RATES, chosen_rate, trial_length
from lrcompress.tuning.training_setup import TrainingSetup

START = 1.0


def chosen(
    monkeypatch: pytest.MonkeyPatch,
    ends: Mapping[float, float],
    steps: int = 100,
    *,
    divergence: bool = True,
) -> float:
    """The rate for trials that end so; a rate that is not named ends far worse than it began."""

    class Trial:
        def __init__(
            self, setup: object, train_state: Any, store: object, *, on_trial: bool
        ) -> None:
            assert on_trial
            assert train_state.steps == trial_length(steps)
            self._rate = train_state.learning_rate

        def run_without_evaluation_(self) -> float:
            return ends.get(self._rate, 10 * START)

    monkeypatch.setattr(rates, "Loop", Trial)
    given: list[object] = []
    setup = SimpleNamespace(
        weights=lambda: "as they were",
        set_weights_=given.append,
        objective=SimpleNamespace(measured_by_divergence=divergence),
    )
    found = chosen_rate(cast(TrainingSetup, setup), steps, START, SILENT)
    assert given[-1] == "as they were"
    return found


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({3e-4: 1.4}, 3e-4),  # a little worse comes right as the rate falls
        ({3e-4: 0.8, 1e-3: 1.4}, 1e-3),
        ({3e-4: 1.6, 1e-4: 0.9, 3e-5: 0.8}, 1e-4),  # not the one that gains most
        ({3e-5: 0.9}, 3e-5),
        (dict.fromkeys(RATES, 0.5), RATES[-1]),
        ({3e-4: float("nan"), 1e-4: float("nan")}, RATES[0]),
        ({}, RATES[0]),  # all do harm: the smallest, and the best point is kept anyway
    ],
)
def test_the_largest_rate_that_does_little_harm_is_taken(
    monkeypatch: pytest.MonkeyPatch, ends: dict[float, float], expected: float
) -> None:
    assert chosen(monkeypatch, ends) == expected


@pytest.mark.parametrize(
    ("ends", "expected"),
    [
        ({3e-5: 0.9, 1e-4: 0.8, 3e-4: 0.7}, 3e-4),
        ({3e-4: 0.5, 1e-3: 0.9}, 3e-4),  # 1e-3 gains a fifth: too little
        ({3e-4: 0.5, 1e-3: 0.8}, 1e-3),
        ({3e-4: 1.1, 1e-4: 0.9}, 1e-4),  # no steps to make up for harm
        ({}, RATES[0]),
    ],
)
def test_a_short_training_and_one_with_a_loss_of_its_own_take_a_rate_that_gains(
    monkeypatch: pytest.MonkeyPatch, ends: dict[float, float], expected: float
) -> None:
    assert chosen(monkeypatch, ends, steps=99) == expected
    assert chosen(monkeypatch, ends, steps=200, divergence=False) == expected


def test_trials_are_short_and_long_enough() -> None:
    assert [trial_length(steps) for steps in (1, 100, 10_000)] == [4, 5, 20]
