"""Causal language modelling: the cross-entropy of the next token."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.network.batches import Batch, Batches
from lrcompress.tuning.losses.tokens import (
    IDS,
    TokenObjective,
    mean_cross_entropy,
    without_padding,
)


class NextToken(TokenObjective):
    """Mean of -log p(token t+1 | tokens up to t), over pairs without padding."""

    name: ClassVar[str] = "clm"

    def check(self, batches: Batches) -> None:
        super().check(batches)
        if all(batch[IDS].shape[1] < 2 for batch in batches):
            raise DataError("clm: every text is a single token, so none is next; give longer texts")

    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        logits = self.logits(batch)
        kept = without_padding(batch).to(logits.device)
        kept = kept[:, 1:] & kept[:, :-1]
        targets = batch[IDS].to(logits.device)[:, 1:]
        return mean_cross_entropy(logits[:, :-1][kept], targets[kept])
