"""Checks of the data and of the network for objectives on texts."""

from __future__ import annotations

import torch

from lrcompress.errors import DataError, TuneError
from lrcompress.network.batches import Batch, Batches
from lrcompress.network.call import call, frozen
from lrcompress.tuning.losses.objective import Setting

IDS = "input_ids"


def check_tokens(objective: str, batches: Batches) -> None:
    """Raise DataError if a batch is not text."""
    for batch in batches:
        ids = batch.get(IDS)
        if ids is None or ids.dim() != 2 or ids.is_floating_point():
            names = ", ".join(batch)
            raise DataError(
                f"{objective}: needs texts as {IDS} (examples, positions), not {names}; give text "
                "as --data, or use distill"
            )


@torch.no_grad()
def check_logits(objective: str, setting: Setting, batch: Batch) -> None:
    """Raise TuneError if the network's output is not logits over a vocabulary for each token."""
    if len(setting.readout.heads) > 1:
        names = ", ".join(head.name for head in setting.readout.heads)
        raise TuneError(
            f"{objective}: the profile measures several outputs ({names}), not logits over a "
            "vocabulary alone; profile with --output-name, or use distill"
        )
    with frozen(setting.module):
        logits, _ = setting.readout(call(setting.module, batch), batch)
    ids = batch[IDS]
    if logits.shape[:2] != ids.shape or logits.dim() != 3 or int(ids.max()) >= logits.shape[-1]:
        raise TuneError(
            f"{objective}: the network's output is {tuple(logits.shape)}, not logits over a "
            f"vocabulary for {tuple(ids.shape)} tokens; use distill"
        )
