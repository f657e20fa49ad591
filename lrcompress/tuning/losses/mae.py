"""Masked autoencoding: reproduce the dense network's output for an input from a part of it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.network.batches import MASK, Batch, Batches
from lrcompress.tuning.losses.objective import Setting, TuningObjective
from lrcompress.tuning.losses.teacher import Agreement, Teacher, settling

RATE = 0.3  # share of the input that is masked; low, since the network knows no mask token
PATCHES = 7  # along each side of an image, or one per pixel if it is smaller


class MaskedInput(TuningObjective):
    """Distillation in which the dense network gets the whole input and the other a masked one.

    Predicting a teacher's features of the unmasked input, instead of pixels, needs no decoder:
    data2vec (Baevski et al. 2022, sec. 3.3), MaskFeat (Wei et al. 2022). Masked are patches of
    images (examples, channels, height, width), positions of sequences (examples, positions,
    features) and single features (examples, features). A masked value becomes its mean over the
    batch.
    """

    name: ClassVar[str] = "mae"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._teacher, self._agreement = Teacher(setting), Agreement(setting)

    def check(self, batches: Batches) -> None:
        for batch in batches:
            if not _maskable(batch):
                names = ", ".join(batch)
                raise DataError(
                    f"mae: needs images or arrays of real numbers, not {names}; use distill, or "
                    "mlm for texts"
                )
        generator = torch.Generator().manual_seed(self.setting.options.seed)
        self._agreement.settle(
            (self._teacher.lesson(b, None), b, masked(b, generator)) for b in settling(batches)
        )

    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        lesson = self._teacher.lesson(batch, place)
        return self._agreement.loss(lesson, batch, masked(batch, generator))


def masked(batch: Batch, generator: torch.Generator) -> Batch:
    """Return the batch with about RATE of each real-valued input masked."""
    return {**batch, **{name: _hidden(batch[name], generator) for name in _maskable(batch)}}


def _maskable(batch: Batch) -> list[str]:
    return [n for n, x in batch.items() if n != MASK and x.is_floating_point() and x.dim() >= 2]


def _hidden(x: Tensor, generator: torch.Generator) -> Tensor:
    if x.dim() == 2:
        gone = torch.rand(x.shape, generator=generator) < RATE
        return torch.where(gone.to(x.device), x.mean(0), x)
    if x.dim() == 3:
        gone = torch.rand((*x.shape[:2], 1), generator=generator) < RATE
        return torch.where(gone.to(x.device), x.mean((0, 1)), x)
    grid = [min(PATCHES, side) for side in x.shape[2:]]
    coarse = torch.rand((len(x), 1, *grid), generator=generator) < RATE
    gone = torch.nn.functional.interpolate(coarse.float(), x.shape[2:]).bool()
    axes = (0, *range(2, x.dim()))
    return torch.where(gone.to(x.device), x.mean(axes, keepdim=True), x)
