"""The teacher's outputs (those of the dense network), and the distance of a network from them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.network.batches import Batch, Batches
from lrcompress.network.call import call, frozen
from lrcompress.tuning.features import Seen, hidden_difference, watching
from lrcompress.tuning.losses.objective import Setting

LARGEST_KEPT = 2**26  # cached values in all: 256 MB
SMALLEST = 1e-9
SETTLING = 4  # about as many batches measure the initial distance of the networks


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    output: Tensor
    weights: Tensor
    hidden: Seen


class Teacher:
    """Runs the dense network as the teacher; caches its outputs as far as they fit in memory."""

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._kept: dict[int, TeacherOutput] = {}
        self._room = LARGEST_KEPT

    @torch.no_grad()
    def lesson(self, batch: Batch, place: int | None) -> TeacherOutput:
        if place is not None and place in self._kept:
            return self._kept[place]
        dense, readout = self._setting.dense, self._setting.readout
        points = (
            [point for point, _ in self._setting.points] if self._setting.options.hidden else []
        )
        with frozen(dense), watching(points) as hidden:
            output, weights = readout(call(dense, batch), batch)
        lesson = TeacherOutput(output, weights, hidden)
        size = output.numel() + sum(x.numel() for calls in hidden for x in calls)
        if place is not None and size <= self._room:
            self._room -= size
            self._kept[place] = lesson
        return lesson


def settling(batches: Batches) -> Batches:
    """Return a few batches, evenly spread because batches are sorted by length."""
    return batches[:: max(1, len(batches) // SETTLING)]


class Agreement:
    """The distance of the trained network from the dense one, relative to the initial distance.

    loss = D / D0 + hidden * H / H0

    D: output divergence per position; H: mean difference of the hidden features (features.py);
    D0, H0: the same before training. A divergence in nats and a share of a variance have no common
    unit. Without D0 and H0, only H would be trained where the outputs are already close.
    """

    def __init__(self, setting: Setting) -> None:
        self._setting = setting
        self._scales: tuple[float, float] = (1.0, 1.0)

    @torch.no_grad()
    def settle(self, lessons: Iterable[tuple[TeacherOutput, Batch, Batch]]) -> None:
        """Compute D0 and H0 from triples (teacher output, its batch, the trained one's batch)."""
        seen = [self._terms(*lesson) for lesson in lessons]
        outputs, hidden = (float(sum(terms)) / len(seen) for terms in zip(*seen, strict=True))
        self._scales = (max(outputs, SMALLEST), max(hidden, SMALLEST))

    def loss(self, lesson: TeacherOutput, batch: Batch, shown: Batch) -> Tensor:
        """Return the loss. batch: the teacher's input; shown: the input of the trained network.

        Both inputs have the same shapes.
        """
        output, hidden = self._terms(lesson, batch, shown)
        return output / self._scales[0] + self._setting.options.hidden * hidden / self._scales[1]

    def _terms(self, lesson: TeacherOutput, batch: Batch, shown: Batch) -> tuple[Tensor, Tensor]:
        setting = self._setting
        points = [point for _, point in setting.points] if setting.options.hidden else []
        with watching(points) as hidden:
            output, _ = setting.readout(call(setting.module, shown), batch)
        apart = setting.readout.objective.divergence(lesson.output, output, lesson.weights)
        apart = apart.sum() / lesson.weights.sum().clamp_min(SMALLEST)
        differences = [
            hidden_difference(f, g, batch)
            for calls, others in zip(lesson.hidden, hidden, strict=True)
            for f, g in zip(calls, others, strict=True)
        ]
        return apart, torch.stack(differences).mean() if differences else apart.new_zeros(())
