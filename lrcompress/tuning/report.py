"""The report of a tuning."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lrcompress.compression.measure import Divergence


@dataclass(frozen=True)
class HeldOut:
    """The measure on held-out examples after `step` steps; None where it was not finite."""

    step: int
    value: float | None


@dataclass(frozen=True)
class TuneReport:
    """Results of a tuning.

    measure: the kind of `start`, `end` and `history`, a divergence or a loss per example. The
    weights are those of `best_step`, which is 0 if no step was better than the start. It was chosen
    on the held-out examples, so unseen examples may gain slightly less. No field is a time.
    """

    objective: str
    measure: str
    start: float
    end: float  # measure of the kept weights
    best_step: int
    history: tuple[HeldOut, ...]
    losses: tuple[float, ...]  # the objective's loss at each step
    steps: int
    learning_rate: float  # the last one; each restart halves it
    restarts: int
    trained_params: int
    taught_examples: int
    judging_examples: int
    positions: float = 1.0  # mean number of positions per example in a divergence
    quality: Divergence | None = None  # of the kept weights; None where the measure is a loss
    merge_losses: Mapping[str, float] = field(default_factory=dict)  # layer -> adapter's merge loss
    warnings: tuple[str, ...] = ()

    @property
    def improved(self) -> bool:
        return self.end < self.start
