"""A reaction model: an ALBERT whose one layer is used twelve times, over tokens of SMILES.

From rxnmapper (MIT). `data/reactions.npz`: reactions in its tokens, 15 % masked, to calibrate on;
others with one token masked, and the token that was there.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.cache import cached_arrays, cached_folder, wheel_folder
from benchmarks.unseen_networks.network import Network, network
from benchmarks.unseen_networks.score import IGNORED, Score, classified
from lrcompress.network.batches import Batch

PACKAGE = "rxnmapper==0.4.3"
FOLDER = "rxnmapper/models/transformers/albert_heads_8_uspto_all_1310k"
REACTIONS = Path(__file__).parent / "data" / "reactions.npz"


def load() -> Network:
    return network(
        "albert",
        model=cached_folder("albert/model", _fill),
        data=cached_arrays("albert/calibration", _calibration),
        score=_score,
        metric_name="masked accuracy",
        scope="total",
        calibration="256 reactions, 15 % masked",
        evaluation="1,166 other reactions, one token masked",
    )


def _fill(folder: Path) -> None:
    """With the weights as safetensors, which need no trust."""
    from transformers import AlbertForMaskedLM

    source = wheel_folder(PACKAGE) / FOLDER
    AlbertForMaskedLM.from_pretrained(source).save_pretrained(folder)
    shutil.copyfile(source / "vocab.txt", folder / "vocab.txt")


def _calibration() -> dict[str, np.ndarray]:
    with np.load(REACTIONS) as found:
        return {
            "input_ids": found["calibration_ids"].astype(np.int64),
            "attention_mask": found["calibration_mask"].astype(np.int64),
        }


def _score(module: nn.Module) -> Score:
    return classified(module, examples())


def examples() -> Iterator[tuple[Batch, Tensor]]:
    """The short reactions first, so that little padding is computed."""
    with np.load(REACTIONS) as found:
        ids, position, token = (
            torch.from_numpy(found[f"evaluation_{name}"].astype(np.int64))
            for name in ("ids", "position", "token")
        )
        mask = (ids != int(found["pad"])).long()
    right = torch.full_like(ids, IGNORED)
    right[torch.arange(len(ids)), position] = token
    for rows in mask.sum(1).argsort().split(64):
        length = int(mask[rows].sum(1).max())
        batch = {"input_ids": ids[rows, :length], "attention_mask": mask[rows, :length]}
        yield batch, right[rows, :length]
