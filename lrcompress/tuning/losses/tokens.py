"""What the objectives on texts share: the checks of the data and network, and the mean loss."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from lrcompress.errors import DataError, TuneError
from lrcompress.network.batches import MASK, Batch, Batches
from lrcompress.network.call import call, frozen
from lrcompress.tuning.losses.objective import TuningObjective

IDS = "input_ids"


class TokenObjective(TuningObjective):
    """Base class of objectives that predict tokens from a network's logits over a vocabulary."""

    def check(self, batches: Batches) -> None:
        """Raise DataError if a batch is not text, and TuneError if the output is not logits."""
        for batch in batches:
            ids = batch.get(IDS)
            if ids is None or ids.dim() != 2 or ids.is_floating_point():
                names = ", ".join(batch)
                raise DataError(
                    f"{self.name}: needs texts as {IDS} (examples, positions), not {names}; give "
                    "text as --data, or use distill"
                )
        self._check_logits(batches[0])

    @torch.no_grad()
    def _check_logits(self, batch: Batch) -> None:
        heads = self.setting.readout.heads
        if len(heads) > 1:
            names = ", ".join(head.name for head in heads)
            raise TuneError(
                f"{self.name}: the profile measures several outputs ({names}), not only logits "
                "over a vocabulary; profile with --output-name, or use distill"
            )
        with frozen(self.setting.module):
            logits = self.logits(batch)
        ids = batch[IDS]
        if logits.shape[:2] != ids.shape or logits.dim() != 3 or int(ids.max()) >= logits.shape[-1]:
            raise TuneError(
                f"{self.name}: the network's output is {tuple(logits.shape)}, not logits over a "
                f"vocabulary for {tuple(ids.shape)} tokens; use distill"
            )

    def logits(self, batch: Batch) -> Tensor:
        """Return the network's logits: (examples, positions, vocabulary)."""
        return self.setting.readout(call(self.setting.module, batch), batch)[0]


def without_padding(batch: Batch) -> Tensor:
    """Return a boolean mask of the tokens that are not padding: (examples, positions)."""
    return batch[MASK].bool() if MASK in batch else torch.ones_like(batch[IDS], dtype=torch.bool)


def mean_cross_entropy(logits: Tensor, tokens: Tensor) -> Tensor:
    """Return the mean of -log p(token) over logits (n, vocabulary), a scalar; 0 without tokens."""
    total = functional.cross_entropy(logits.float(), tokens, reduction="sum")
    return total / max(len(logits), 1)
