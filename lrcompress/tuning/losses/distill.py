"""Distillation from the dense network as the teacher; any unlabelled input can be used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lrcompress.network.batches import Batch, Batches
from lrcompress.network.call import call, frozen
from lrcompress.tuning.features import Seen, hidden_difference, watching
from lrcompress.tuning.losses.objective import Setting, TuningObjective

LARGEST_KEPT = 2**26  # cached values in all: 256 MB
SMALLEST = 1e-9
SCALING_BATCHES = 4  # about as many batches measure the initial distance of the networks


@dataclass(frozen=True, eq=False)
class TeacherOutput:
    output: Tensor
    weights: Tensor
    hidden: Seen


class Distill(TuningObjective):
    """loss = D(f, g) / D0 + hidden * mean over blocks of |h_f - h_g|^2 / |h_f - mean h_f|^2 / H0.

    D is the profile's output divergence per position: KL (Hinton et al. 2015, at temperature one),
    cosine or squared distance. h are the outputs of the blocks (features.py). D0 and H0 are both
    terms before training: a divergence in nats and a share of a variance have no common unit, and
    without them only the hidden term would be trained where the outputs are already close.
    """

    name: ClassVar[str] = "distill"
    takes_noise: ClassVar[bool] = True  # the teacher has an output for any input

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._scales: tuple[float, float] = (1.0, 1.0)  # D0, H0
        self._kept: dict[int, TeacherOutput] = {}
        self._room = LARGEST_KEPT
        points = setting.points if setting.options.hidden else ()
        self._dense_points = [point for point, _ in points]
        self._points = [point for _, point in points]

    @torch.no_grad()
    def check(self, batches: Batches) -> None:
        """Compute D0 and H0 on a few batches, evenly spread because they are sorted by length."""
        generator = torch.Generator().manual_seed(self.setting.options.seed)
        seen = [
            self._terms(self._teacher(batch, None), batch, self.shown(batch, generator))
            for batch in batches[:: max(1, len(batches) // SCALING_BATCHES)]
        ]
        outputs, hidden = (float(sum(terms)) / len(seen) for terms in zip(*seen, strict=True))
        self._scales = (max(outputs, SMALLEST), max(hidden, SMALLEST))

    def shown(self, batch: Batch, generator: torch.Generator) -> Batch:
        """Return the input of the trained network, of the shapes of `batch`, the teacher's."""
        return batch

    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        teacher = self._teacher(batch, place)
        output, hidden = self._terms(teacher, batch, self.shown(batch, generator))
        return output / self._scales[0] + self.setting.options.hidden * hidden / self._scales[1]

    @torch.no_grad()
    def _teacher(self, batch: Batch, place: int | None) -> TeacherOutput:
        """Return the dense network's outputs; they are cached as far as they fit in memory."""
        if place is not None and place in self._kept:
            return self._kept[place]
        dense = self.setting.dense
        with frozen(dense), watching(self._dense_points) as hidden:
            output, weights = self.setting.readout(call(dense, batch), batch)
        teacher = TeacherOutput(output, weights, hidden)
        size = output.numel() + sum(x.numel() for calls in hidden for x in calls)
        if place is not None and size <= self._room:
            self._room -= size
            self._kept[place] = teacher
        return teacher

    def _terms(self, teacher: TeacherOutput, batch: Batch, shown: Batch) -> tuple[Tensor, Tensor]:
        """Return D and the mean over the blocks before scaling, two scalars."""
        readout = self.setting.readout
        with watching(self._points) as hidden:
            output, _ = readout(call(self.setting.module, shown), batch)
        apart = readout.objective.divergence(teacher.output, output, teacher.weights)
        apart = apart.sum() / teacher.weights.sum().clamp_min(SMALLEST)
        differences = [
            hidden_difference(f, g, batch)
            for calls, others in zip(teacher.hidden, hidden, strict=True)
            for f, g in zip(calls, others, strict=True)
        ]
        return apart, torch.stack(differences).mean() if differences else apart.new_zeros(())
