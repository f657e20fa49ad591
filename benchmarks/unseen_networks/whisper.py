"""Speech to text: Whisper tiny.en, an encoder and a decoder, scored teacher forced."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.cache import cached_arrays, cached_folder
from benchmarks.unseen_networks.network import Network, network
from benchmarks.unseen_networks.score import IGNORED, Score, classified, portions
from benchmarks.unseen_networks.speech import RATE, VOICES, said, sentences
from benchmarks.unseen_networks.whisper_weights import END, START, TEXT, write_model
from lrcompress.network.batches import Batch

CALIBRATION, EVALUATION = 48, 16  # utterances
TOKENS = 14  # of each, with the two before the text and the one after it


def load() -> Network:
    return network(
        "whisper",
        model=cached_folder("whisper/model", write_model),
        data=cached_arrays("whisper/calibration", lambda: _utterances(0, CALIBRATION)),
        score=_score,
        metric_name="tokens right, teacher forced",
        scope="total",
        calibration=f"{CALIBRATION} utterances of four voices",
        evaluation=f"{EVALUATION} other utterances",
    )


def _utterances(start: int, count: int) -> dict[str, np.ndarray]:
    """Those sentences of one length in tokens, so that none is padded; voices take turns."""
    from transformers import WhisperFeatureExtractor, WhisperTokenizerFast

    folder = cached_folder("whisper/model", write_model)
    tokenizer = WhisperTokenizerFast.from_pretrained(folder)
    extractor = WhisperFeatureExtractor.from_pretrained(folder)
    features, tokens = [], []
    skipped = 0
    for sentence in sentences(seed=0):
        ids = tokenizer(f" {sentence}", add_special_tokens=False)["input_ids"]
        if len(ids) != TOKENS - 3:
            continue
        if skipped < start:
            skipped += 1
            continue
        samples = said(sentence, VOICES[len(tokens) % len(VOICES)])
        heard = extractor(samples, sampling_rate=RATE, return_tensors="np")
        features.append(heard["input_features"][0])
        tokens.append([START, TEXT, *ids, END])
        if len(tokens) == count:
            break
    return {
        "input_features": np.stack(features).astype(np.float32),  # (n, 80, 3000)
        "decoder_input_ids": np.array(tokens),  # (n, 14)
    }


def examples() -> list[tuple[Batch, Tensor]]:
    """Evaluation utterances, 4 a batch, and the token that follows each one of their text."""
    path = cached_arrays("whisper/evaluation", lambda: _utterances(CALIBRATION, EVALUATION))
    with np.load(path) as found:
        batch = {name: torch.from_numpy(found[name]) for name in found.files}
    ids = batch["decoder_input_ids"]
    right = torch.full_like(ids, IGNORED)
    right[:, 1:-1] = ids[:, 2:]  # the token that follows, from the text's first to the end
    return portions(batch, right, 4)


def _score(module: nn.Module) -> Score:
    return classified(module, examples())
