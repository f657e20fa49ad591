"""What tuning did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lrcompress.compression.measure import Divergence


@dataclass(frozen=True)
class HeldOut:
    """The measure on held-out examples after so many steps; None where it was not finite."""

    step: int
    value: float | None


@dataclass(frozen=True)
class TuneReport:
    """`measure` says what `start`, `end` and `history` are: a divergence or a loss per example.

    The weights are those of `best_step`: 0 where no step was better than the start. The held-out
    examples chose it, so unseen ones may show a little less gain. Nothing here is a time.
    """

    objective: str
    measure: str
    start: float
    end: float  # of the weights that were kept
    best_step: int
    history: tuple[HeldOut, ...]
    losses: tuple[float, ...]  # of the objective, step by step
    steps: int
    learning_rate: float  # the last one; halved at each restart
    restarts: int
    trained_params: int
    taught_examples: int
    judging_examples: int
    positions: float = 1.0  # of an example that a divergence is summed over, on average
    quality: Divergence | None = None  # of the end; None where a loss judged
    merge_losses: Mapping[str, float] = field(default_factory=dict)  # layer -> of its adapter
    warnings: tuple[str, ...] = ()

    @property
    def improved(self) -> bool:
        return self.end < self.start
