"""The training loop: steps, held-out measurements, and restarts from the best weights."""

from __future__ import annotations

from dataclasses import replace
from math import isfinite

import torch

from lrcompress.checkpoint import CheckpointStore
from lrcompress.distributed import on_main
from lrcompress.progress import Progress, Step
from lrcompress.tuning.checkpoint import Checkpoint, TrainState, save_checkpoint
from lrcompress.tuning.report import HeldOut
from lrcompress.tuning.training_setup import LARGEST_NORM, TrainingSetup, accumulate_, factor

MOST_RESTARTS = 4
TOO_FAR = 2.0  # times the start's measure; above it, training restarts from the best weights
EVALUATIONS, CLOSEST_EVALUATIONS = 20, 10  # number in all, fewest steps between two


class Loop:
    """One training. `train_state` and the weights always belong to the same step."""

    def __init__(
        self,
        setup: TrainingSetup,
        begun: TrainState | Checkpoint,
        store: CheckpointStore,
        *,
        on_trial: bool = False,
    ) -> None:
        """Set up the weights and the optimiser.

        begun: a TrainState at step 0 whose history holds the start, or a checkpoint to resume.
        """
        self.setup, self._store, self._on_trial = setup, store, on_trial
        self._scaler = setup.scaler()
        if isinstance(begun, Checkpoint):
            self.train_state = begun.state
            setup.set_weights_(begun.weights)
            self.best = {k: v.to(setup.device) for k, v in begun.best.items()}
            self._set_up_optimiser()
            self._optimiser.load_state_dict(begun.optimiser["optimiser"])
            self._scaler.load_state_dict(begun.optimiser["scaler"])
            if setup.adapter is not None:
                setup.adapter.load_state_dict(begun.extra)
            torch.set_rng_state(begun.generator)
        else:
            self.train_state = begun
            self.best = setup.weights()
            self._set_up_optimiser()

    @property
    def start(self) -> float:
        return _value(self.train_state.history[0])

    @property
    def best_value(self) -> float:
        return min(map(_value, self.train_state.history))

    def run_(self, progress: Progress) -> None:
        """Train to the last step, then restore the best weights."""
        steps = self.train_state.steps
        every = self.setup.options.evaluate_every or evaluation_interval(steps)
        with progress.stage("tune", steps) as shown:
            shown.advance(self.train_state.step)
            while self.train_state.step < steps and self.train_state.restarts <= MOST_RESTARTS:
                self._show(shown)
                lost = not self._step()
                shown.advance()
                if lost or self.train_state.step % every == 0 or self.train_state.step == steps:
                    self._evaluate(lost=lost)
                    on_main(lambda: save_checkpoint(self._store, self._checkpoint()))
            self._show(shown)
        self.setup.set_weights_(self.best)

    def run_without_evaluation_(self) -> float:
        """Train to the last step without evaluation; return the measure of the final weights."""
        while self.train_state.step < self.train_state.steps:
            if not self._step():
                return float("inf")
        return self.setup.measure()

    def _step(self) -> bool:
        """Take one step. If the loss is not finite, leave the weights and return False."""
        setup, now = self.setup, self.train_state
        scale = factor(now.step, now.steps)
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * scale
        self._optimiser.zero_grad(set_to_none=True)
        loss = accumulate_(setup, now.step, self._scaler)
        self.train_state = replace(now, step=now.step + 1)
        if not isfinite(loss):
            return False
        self.train_state = replace(self.train_state, losses=(*now.losses, loss))
        self._scaler.unscale_(self._optimiser)
        torch.nn.utils.clip_grad_norm_(list(setup.parameters.values()), LARGEST_NORM)
        self._scaler.step(self._optimiser)
        self._scaler.update()
        if setup.adapter is not None and not self._on_trial:
            setup.adapter.after_backward(now.step)
        return True

    def _evaluate(self, *, lost: bool) -> None:
        """Keep the weights if they are the best so far; restart if the training has diverged.

        A restart takes the best weights and half the learning rate. Diverged: a loss or an output
        that is not finite, or a measure above TOO_FAR times the start. Slightly worse is common
        while the learning rate is at its peak, and recovers as it falls.
        """
        value = float("inf") if lost else self.setup.measure()
        now, best = self.train_state, self.best_value
        entry = HeldOut(now.step, value if isfinite(value) else None)
        now = replace(now, history=(*now.history, entry))
        if value < best:
            self.best = self.setup.weights()
            now = replace(now, best_step=now.step)
        if value > TOO_FAR * self.start:
            self.setup.set_weights_(self.best)
            now = replace(now, learning_rate=now.learning_rate / 2, restarts=now.restarts + 1)
        restarted = now.restarts > self.train_state.restarts
        self.train_state = now
        if restarted:
            self._set_up_optimiser()

    def _set_up_optimiser(self) -> None:
        self._optimiser = self.setup.optimiser(self.train_state.learning_rate)
        self._rates: list[float] = [group["lr"] for group in self._optimiser.param_groups]

    def _checkpoint(self) -> Checkpoint:
        setup = self.setup
        return Checkpoint(
            state=self.train_state,
            weights=setup.weights(),
            best=self.best,
            optimiser={
                "optimiser": self._optimiser.state_dict(),
                "scaler": self._scaler.state_dict(),
            },
            extra={} if setup.adapter is None else setup.adapter.state_dict(),
            generator=torch.get_rng_state(),
        )

    def _show(self, shown: Step) -> None:
        shown.say(f"held-out {self.start:.3g} → {self.best_value:.3g}")


def evaluation_interval(steps: int) -> int:
    return max(CLOSEST_EVALUATIONS, steps // EVALUATIONS)


def _value(entry: HeldOut) -> float:
    return float("inf") if entry.value is None else entry.value
