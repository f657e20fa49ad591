"""AntiBERTy, a masked language model of antibodies (BERT 8x512, MIT)."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.cache import CACHE, cached_arrays
from benchmarks.unseen_networks.network import Network, network
from benchmarks.unseen_networks.score import IGNORED, Score, classified, portions
from lrcompress.network.batches import Batch
from sample_models.antiberty import prepare
from sample_models.germlines import germline_sequences

CALIBRATION, EVALUATION = 64, 128  # sequences
MASKED = 0.15  # of the residues


def load() -> Network:
    folder = CACHE / "antiberty" / "model"
    return network(
        "antiberty",
        model=folder if folder.is_dir() else prepare(folder),
        data=cached_arrays("antiberty/calibration", _calibration),
        score=_score,
        metric_name="masked residues right",
        scope="compressible",
        calibration=f"{CALIBRATION} germline sequences, 15 % masked",
        evaluation=f"{EVALUATION} others",
    )


def _calibration() -> dict[str, np.ndarray]:
    batch, _ = _masked()
    return {name: part[:CALIBRATION].numpy() for name, part in batch.items()}


def examples() -> list[tuple[Batch, Tensor]]:
    """Evaluation sequences, 32 a batch, and the residues that were masked in them."""
    batch, right = _masked()
    held_out = {name: part[CALIBRATION:] for name, part in batch.items()}
    return portions(held_out, right[CALIBRATION:], 32)


def _score(module: nn.Module) -> Score:
    return classified(module, examples())


@cache
def _masked() -> tuple[Batch, Tensor]:
    """Calibration and evaluation sequences, and the residues that were masked in them."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(CACHE / "antiberty" / "model")
    spaced = [" ".join(s) for s in germline_sequences(CALIBRATION + EVALUATION, seed=0)]
    tokens = tokenizer(spaced, padding=True, return_tensors="pt")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    place = torch.arange(ids.shape[1])
    residue = (place > 0) & (place < mask.sum(1, keepdim=True) - 1)  # between [CLS] and [SEP]
    drawn = torch.rand(ids.shape, generator=torch.Generator().manual_seed(0))
    hidden = residue & (drawn < MASKED)
    batch = {"input_ids": ids.masked_fill(hidden, tokenizer.mask_token_id), "attention_mask": mask}
    return batch, ids.masked_fill(~hidden, IGNORED)
