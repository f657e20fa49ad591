"""SmolLM2-135M-Instruct, a decoder (Llama 30x576) with a tied head, on a few windows of text."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.cache import CACHE, cached_arrays
from benchmarks.unseen_networks.network import Network, network
from benchmarks.unseen_networks.score import Score, logits_of
from lrcompress.sources.models import load_model
from sample_models.smollm2 import prepare
from sample_models.text import wordnet_glosses

FOLDER = CACHE / "smollm2" / "model"
CALIBRATION, EVALUATION, WINDOW = 24, 8, 256  # windows, tokens of each


def load() -> Network:
    return network(
        "smollm2",
        model=FOLDER if FOLDER.is_dir() else prepare(FOLDER),
        data=cached_arrays("smollm2/calibration", _calibration),
        score=_score,
        metric_name="next tokens as the dense network's",
        scope="compressible",
        calibration=f"{CALIBRATION} windows of {WINDOW} tokens of WordNet's glosses",
        evaluation=f"{EVALUATION} windows of other glosses",
    )


def _calibration() -> dict[str, np.ndarray]:
    return {"input_ids": _windows(0, CALIBRATION)}


def evaluation_windows() -> np.ndarray:
    """Windows of glosses that do not calibrate.  (EVALUATION, WINDOW)"""
    return _windows(CALIBRATION, EVALUATION)


def _windows(start: int, count: int) -> np.ndarray:
    """(count, WINDOW), of running text without overlap."""
    text = "\n".join(wordnet_glosses(2000, seed=0))
    return windows_of(text, CALIBRATION + EVALUATION)[start:][:count]


def _evaluation() -> dict[str, np.ndarray]:
    """Windows, and the dense network's choice after each of their tokens."""
    ids = evaluation_windows()
    dense = load_model(str(FOLDER)).module
    chosen = [logits_of(dense, {"input_ids": row}).argmax(-1) for row in _rows(ids)]
    return {"input_ids": ids, "chosen": torch.cat(chosen).numpy()}


def windows_of(text: str, count: int) -> np.ndarray:
    """The first `count` windows of a text.  (count, WINDOW)"""
    from transformers import AutoTokenizer

    ids = AutoTokenizer.from_pretrained(FOLDER)(text)["input_ids"]
    return np.array(ids[: count * WINDOW]).reshape(-1, WINDOW)


def _rows(ids: np.ndarray) -> list[Tensor]:
    return list(torch.from_numpy(ids).split(1))


def _score(module: nn.Module) -> Score:
    """Loss and entropy of the text's own tokens; agreement with the dense network's choices."""
    with np.load(cached_arrays("smollm2/evaluation", _evaluation)) as found:
        rows, chosen = _rows(found["input_ids"]), torch.from_numpy(found["chosen"])
    nats, entropy, agreed = 0.0, 0.0, 0
    for row, dense in zip(rows, chosen, strict=True):
        logits = logits_of(module, {"input_ids": row})[0, :-1]  # (WINDOW - 1, vocabulary)
        logs = logits.double().log_softmax(-1)
        nats -= float(logs.gather(1, row[0, 1:].unsqueeze(1)).sum())
        entropy -= float((logs.exp() * logs).sum())
        agreed += int((logits.argmax(-1) == dense[:-1]).sum())
    count = len(rows) * (WINDOW - 1)
    return Score(agreed / count, nats / count, entropy / count)
