"""Masked language modelling: predict masked tokens from their context."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from lrcompress.errors import TuneError
from lrcompress.network.batches import Batch, Batches
from lrcompress.tuning.losses.tokens import (
    IDS,
    TokenObjective,
    mean_cross_entropy,
    without_padding,
)

RATE = 0.15  # share of the tokens that are predicted
HIDDEN, ANOTHER = 0.8, 0.1  # shares of those: masked, replaced by another token; the rest stay


class MaskedTokens(TokenObjective):
    """Mean of -log p(token | the text with it masked) over 15 % of the tokens.

    Of these, 80 % become the mask and 10 % another token (Devlin et al. 2019, sec. 3.1).
    """

    name: ClassVar[str] = "mlm"

    def check(self, batches: Batches) -> None:
        super().check(batches)
        if self.setting.options.mask_token is None:
            raise TuneError(
                "mlm: the tokenizer has no mask token; give its id (--mask-token ID), or use "
                "distill"
            )

    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        masked, predicted = self._masked(batch, generator)
        logits = self.logits(masked)
        predicted = predicted.to(logits.device)
        return mean_cross_entropy(logits[predicted], batch[IDS].to(logits.device)[predicted])

    def _masked(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """Return the masked batch, and a boolean mask of the tokens to predict."""
        ids, kept = batch[IDS].cpu(), without_padding(batch).cpu()
        predicted = kept & (torch.rand(ids.shape, generator=generator) < RATE)
        fate = torch.rand(ids.shape, generator=generator)
        # Another token of the same batch, since only the texts show which ids are in use
        words = ids[kept]
        drawn = words[torch.randint(len(words), ids.shape, generator=generator)]
        mask_token = self.setting.options.mask_token
        assert mask_token is not None
        hidden = torch.where(predicted & (fate < HIDDEN), mask_token, ids)
        swapped = predicted & (fate >= HIDDEN) & (fate < HIDDEN + ANOTHER)
        return {**batch, IDS: torch.where(swapped, drawn, hidden)}, predicted
