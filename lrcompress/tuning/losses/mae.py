"""Masked autoencoding: reproduce the dense network's output for an input from a part of it."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.network.batches import MASK, Batch, Batches
from lrcompress.tuning.losses.distill import Distill

RATE = 0.3  # share of the input that is masked; low, since the network knows no mask token
PATCHES = 7  # along each side of an image, or one per pixel if it is smaller


class MaskedInput(Distill):
    """Distillation in which the dense network gets the whole input and the other a masked one.

    Predicting a teacher's features of the unmasked input, instead of pixels, needs no decoder:
    data2vec (Baevski et al. 2022, sec. 3.3), MaskFeat (Wei et al. 2022). Masked are patches of
    images (examples, channels, height, width), positions of sequences (examples, positions,
    features) and single features (examples, features). A masked value becomes its mean over the
    batch.
    """

    name: ClassVar[str] = "mae"
    takes_noise: ClassVar[bool] = False

    def check(self, batches: Batches) -> None:
        for batch in batches:
            if not _maskable(batch):
                names = ", ".join(batch)
                raise DataError(
                    f"mae: needs images or arrays of real numbers, not {names}; use distill, or "
                    "mlm for texts"
                )
        super().check(batches)

    def shown(self, batch: Batch, generator: torch.Generator) -> Batch:
        return masked(batch, generator)


def masked(batch: Batch, generator: torch.Generator) -> Batch:
    """Return the batch with about RATE of each real-valued input masked."""
    return {**batch, **{name: _hidden(batch[name], generator) for name in _maskable(batch)}}


def _maskable(batch: Batch) -> list[str]:
    return [n for n, x in batch.items() if n != MASK and x.is_floating_point() and x.dim() >= 2]


def _hidden(x: Tensor, generator: torch.Generator) -> Tensor:
    if x.dim() >= 4:
        grid = [min(PATCHES, side) for side in x.shape[2:]]
        coarse = torch.rand((len(x), 1, *grid), generator=generator) < RATE
        gone = torch.nn.functional.interpolate(coarse.float(), x.shape[2:]).bool()
        mean = x.mean((0, *range(2, x.dim())), keepdim=True)
    else:
        shape = x.shape if x.dim() == 2 else (*x.shape[:2], 1)
        gone = torch.rand(shape, generator=generator) < RATE
        mean = x.mean(0) if x.dim() == 2 else x.mean((0, 1))
    return torch.where(gone.to(x.device), mean, x)
