"""all-MiniLM-L6-v2, a sentence encoder (BERT 6x384), calibrated on glosses, scored on verses."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.cache import CACHE, cached_text
from benchmarks.unseen_networks.network import Network, network
from benchmarks.unseen_networks.score import Score
from lrcompress.sources.models import load_model
from sample_models.metrics import embed
from sample_models.minilm import prepare
from sample_models.text import bible_sentences, wordnet_glosses

FOLDER = CACHE / "minilm" / "model"
CALIBRATION, EVALUATION = 256, 256  # texts


def load() -> Network:
    return network(
        "minilm",
        model=FOLDER if FOLDER.is_dir() else prepare(FOLDER),
        data=cached_text("minilm/calibration", lambda: wordnet_glosses(CALIBRATION, seed=0)),
        score=_score,
        metric_name="cosine to the dense embedding",
        scope="compressible",
        calibration=f"{CALIBRATION} of WordNet's glosses",
        evaluation=f"{EVALUATION} verses of the World English Bible",
    )


def _score(module: nn.Module) -> Score:
    return Score(float(nn.functional.cosine_similarity(_dense(), _embedded(module)).mean()))


@cache
def _dense() -> Tensor:
    return _embedded(load_model(str(FOLDER)).module)


def _embedded(module: nn.Module) -> Tensor:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(FOLDER)
    return torch.as_tensor(embed(module, tokenizer, bible_sentences(EVALUATION, seed=0)))
