"""Causal language modelling: the cross-entropy of the next token."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.errors import DataError
from lrcompress.network.batches import MASK, Batch, Batches
from lrcompress.network.call import call, on_device
from lrcompress.tuning.losses.objective import TuningObjective
from lrcompress.tuning.losses.tokens import IDS, check_logits, check_tokens


class NextToken(TuningObjective):
    """Mean of -log p(token t+1 | tokens up to t), over pairs without padding."""

    name: ClassVar[str] = "clm"

    def check(self, batches: Batches) -> None:
        check_tokens(self.name, batches)
        check_logits(self.name, self.setting, batches[0])
        if all(batch[IDS].shape[1] < 2 for batch in batches):
            raise DataError("clm: every text is a single token, so none is next; give longer texts")

    def loss(self, batch: Batch, generator: torch.Generator, *, place: int | None = None) -> Tensor:
        batch = on_device(self.setting.module, batch)
        logits, _ = self.setting.readout(call(self.setting.module, batch), batch)
        ids = batch[IDS]
        kept = torch.ones_like(ids, dtype=torch.bool)
        if MASK in batch:
            kept = batch[MASK].bool()
        kept = kept[:, 1:] & kept[:, :-1]
        rows, targets = logits[:, :-1][kept], ids[:, 1:][kept]
        return functional.cross_entropy(rows.float(), targets, reduction="sum") / max(len(rows), 1)
