"""Bytes of the World English Bible: every book but Luke to train on, Luke to validate on.

`calibration()`, `evaluation()` and `evaluate_slice()` need only the two text files in this
folder; `training_bytes()` and `evaluate()` read the whole text from its package.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from sample_models.text import LUKE, VERSES_PER_BOOK_ID, bible_verses
from sample_models.text_gpt.model import CONTEXT, VOCABULARY

FOLDER = Path(__file__).parent
BATCH = 16


def training_bytes() -> torch.Tensor:
    """All books but Luke, one verse a line.  (n,) uint8"""
    return _bytes("\n".join(t for i, t in bible_verses().items() if not _is_luke(i)))


def validation_bytes() -> torch.Tensor:
    """Luke, one verse a line.  (n,) uint8"""
    return _bytes("\n".join(t for i, t in bible_verses().items() if _is_luke(i)))


def calibration() -> list[dict[str, torch.Tensor]]:
    """Windows of 256 bytes from books the model was trained on (140 kB), 16 a batch."""
    return _batches(_file_bytes("calibration.txt"))


def training_batches(count: int, seed: int) -> list[dict[str, torch.Tensor]]:
    """So many batches of the training text, drawn without a repeat (needs the Bible package)."""
    batches = _batches(training_bytes())[:-1]  # the last one may be short
    order = torch.randperm(len(batches), generator=torch.Generator().manual_seed(seed))
    return [batches[i] for i in order[:count].tolist()]


def evaluation() -> list[dict[str, torch.Tensor]]:
    """Windows of 256 bytes from the first 60 kB of Luke, which the model never saw."""
    return _batches(_file_bytes("heldout.txt"))


def evaluate(model: nn.Module) -> dict[str, float]:
    """Loss over all of Luke (needs the Bible package)."""
    return _losses(model, validation_bytes())


def evaluate_slice(model: nn.Module) -> dict[str, float]:
    """The same over the committed 60 kB of Luke."""
    return _losses(model, _file_bytes("heldout.txt"))


def _losses(model: nn.Module, text: torch.Tensor) -> dict[str, float]:
    """nats_per_byte and bits_per_byte: windows of 256 side by side, every byte counted once."""
    total, count = 0.0, 0
    model.eval()
    with torch.inference_mode():
        for batch in _batches(text):
            ids = batch["input_ids"]
            output = model(**batch)
            logits = output["logits"] if isinstance(output, dict) else output
            loss = functional.cross_entropy(
                logits[:, :-1].reshape(-1, VOCABULARY).double(),
                ids[:, 1:].reshape(-1),
                reduction="sum",
            )
            total, count = total + float(loss), count + ids[:, 1:].numel()
    return {"nats_per_byte": total / count, "bits_per_byte": total / count / math.log(2)}


def _batches(text: torch.Tensor) -> list[dict[str, torch.Tensor]]:
    windows = text[: len(text) // CONTEXT * CONTEXT].long().view(-1, CONTEXT)
    return [{"input_ids": part} for part in torch.split(windows, BATCH)]


def _file_bytes(name: str) -> torch.Tensor:
    return _bytes((FOLDER / name).read_text(encoding="utf-8"))


def _bytes(text: str) -> torch.Tensor:
    return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())


def _is_luke(verse: int) -> bool:
    return verse // VERSES_PER_BOOK_ID == LUKE
