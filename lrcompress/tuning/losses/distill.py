"""Distillation from the dense network as the teacher; any unlabelled input can be used."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lrcompress.network.batches import Batch, Batches
from lrcompress.tuning.losses.objective import Setting, TuningObjective
from lrcompress.tuning.losses.teacher import Agreement, Teacher, settling


class Distill(TuningObjective):
    """loss = D(f, g) / D0 + hidden * mean over blocks of |h_f - h_g|^2 / |h_f - mean h_f|^2 / H0.

    D is the profile's output divergence per position: KL (Hinton et al. 2015, at temperature one),
    cosine or squared distance. h are the outputs of the blocks. D0 and H0 make both terms 1 at the
    start (teacher.py).
    """

    name: ClassVar[str] = "distill"
    takes_noise: ClassVar[bool] = True  # the teacher has an output for any input

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._teacher, self._agreement = Teacher(setting), Agreement(setting)

    def check(self, batches: Batches) -> None:
        self._agreement.settle((self._teacher.lesson(b, None), b, b) for b in settling(batches))

    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        return self._agreement.loss(self._teacher.lesson(batch, place), batch, batch)
