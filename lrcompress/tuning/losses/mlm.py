"""Masked language modelling: predict masked tokens from their context."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.errors import TuneError
from lrcompress.network.batches import MASK, Batch, Batches
from lrcompress.network.call import call, on_device
from lrcompress.tuning.losses.objective import TuningObjective
from lrcompress.tuning.losses.tokens import IDS, check_logits, check_tokens

RATE = 0.15  # share of the tokens that are predicted
HIDDEN, ANOTHER = 0.8, 0.1  # shares of those: masked, replaced by another token; the rest stay


class MaskedTokens(TuningObjective):
    """Mean of -log p(token | the text with it masked) over 15 % of the tokens.

    Of these, 80 % become the mask and 10 % another token (Devlin et al. 2019, sec. 3.1).
    """

    name: ClassVar[str] = "mlm"

    def check(self, batches: Batches) -> None:
        check_tokens(self.name, batches)
        check_logits(self.name, self.setting, batches[0])
        if self.setting.options.mask_token is None:
            raise TuneError(
                "mlm: no mask token is known: the tokenizer names none; give its id "
                "(--mask-token ID), or use distill"
            )

    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        masked, asked = self._masked(batch, generator)
        moved = on_device(self.setting.module, masked)
        logits, _ = self.setting.readout(call(self.setting.module, moved), moved)
        asked = asked.to(logits.device)
        rows, targets = logits[asked], batch[IDS].to(logits.device)[asked]
        return functional.cross_entropy(rows.float(), targets, reduction="sum") / max(len(rows), 1)

    def _masked(self, batch: Batch, generator: torch.Generator) -> tuple[Batch, Tensor]:
        """Return the masked batch, and a boolean mask of the tokens to predict."""
        ids = batch[IDS].cpu()
        kept = batch[MASK].cpu().bool() if MASK in batch else torch.ones_like(ids, dtype=torch.bool)
        asked = kept & (torch.rand(ids.shape, generator=generator) < RATE)
        fate = torch.rand(ids.shape, generator=generator)
        # Another token of the same batch, since only the texts show which ids are in use
        words = ids[kept]
        drawn = words[torch.randint(len(words), ids.shape, generator=generator)]
        mask_token = self.setting.options.mask_token
        assert mask_token is not None
        hidden = torch.where(asked & (fate < HIDDEN), mask_token, ids)
        swapped = asked & (fate >= HIDDEN) & (fate < HIDDEN + ANOTHER)
        return {**batch, IDS: torch.where(swapped, drawn, hidden)}, asked
