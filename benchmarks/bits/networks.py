"""The networks of the benchmark, the smallest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.bits.subject import Examples, Kind, Subject
from benchmarks.unseen_networks import (
    NETWORKS,
    Network,
    Score,
    albert,
    antiberty,
    classifier100,
    convnet,
    crnn,
    smollm2,
    tagger,
    whisper,
)
from benchmarks.unseen_networks.cache import CACHE, cached_text
from benchmarks.unseen_networks.network import network
from benchmarks.unseen_networks.score import IGNORED, classified, portions
from lrcompress.network.batches import Batch
from sample_models import fashion_mnist, fashion_vit, minilm, text

LAYERS = {
    "minilm": r"encoder\.layer\.\d+\.(attention\.self\.\w+|(attention\.output|intermediate|output)"
    r"\.dense)",  # its 36 Linears
    "smollm2": r"model\.(layers|embed_tokens)|lm_head",
}
FEW_EXAMPLES = {"smollm2": 4, "whisper": 8}
SENTENCES = 512  # calibration sentences of MiniLM, and as many of each evaluation set
MINILM = CACHE / "minilm" / "model"
VIT_WEIGHTS = Path(fashion_vit.__file__).parent / "model.safetensors"


def minilm_sentences() -> Subject:
    """MiniLM on verses: calibrated on 512, judged on 512 others and on 512 glosses."""
    taught = text.bible_sentences(SENTENCES, 0)
    others = [row for row in text.bible_sentences(2 * SENTENCES, 1) if row not in set(taught)]
    glosses = text.wordnet_glosses(SENTENCES, 1)
    source = network(
        "minilm",
        model=MINILM if MINILM.is_dir() else minilm.prepare(MINILM),
        data=cached_text("bits/minilm", lambda: taught),
        score=_unscored,
        metric_name="",
        scope="total",
        calibration=f"{SENTENCES} verses",
        evaluation="",
    )
    evaluations = {"other verses": _texts(others[:SENTENCES]), "glosses": _texts(glosses)}
    return _subject(source, "embedding", evaluations)


def minilm_glosses() -> Subject:
    """MiniLM as in benchmarks.unseen: calibrated on 256 glosses, judged on 256 verses."""
    verses = text.bible_sentences(256, seed=0)
    return _subject(NETWORKS["minilm"](), "embedding", {"verses": _texts(verses)}, "minilm-glosses")


def vit() -> Subject:
    """The sample ViT of Fashion-MNIST, judged on the 10,000 test images."""
    images, labels = fashion_mnist.test_set()
    examples = portions({"pixel_values": images}, labels, 250)
    source = network(
        "vit",
        model="sample_models.fashion_vit.model:build",
        weights=VIT_WEIGHTS,
        data="sample_models.fashion_vit.data:calibration",
        score=lambda module: classified(module, examples),
        metric_name="accuracy",
        scope="total",
        calibration="512 training images",
        evaluation="10,000 test images",
    )
    return _subject(source, "classes", {"test images": examples})


def smollm2_windows() -> Subject:
    """SmolLM2 on glosses, as its calibration, and on Python's tutorial."""
    source = NETWORKS["smollm2"]()  # first: it unpacks the tokenizer
    tutorial = smollm2.windows_of(text.python_tutorial(), smollm2.EVALUATION)
    evaluations = {
        "other glosses": _next_tokens(smollm2.evaluation_windows()),
        "Python tutorial": _next_tokens(tutorial),
    }
    return _subject(source, "classes", evaluations)


def crnn_columns() -> Subject:
    """The digit reader; every column of 1,000 held-out strings is judged."""
    images, _ = crnn.strings(1000, torch.Generator().manual_seed(2), held_out=True)
    examples: Examples = [({"pixel_values": part}, None) for part in images.split(250)]
    return _subject(NETWORKS["crnn"](), "classes", {"other strings": examples})


def _unseen(
    name: str, evaluation: str, examples: Callable[[], Sequence[tuple[Batch, Tensor]]]
) -> Callable[[], Subject]:
    return lambda: _subject(NETWORKS[name](), "classes", {evaluation: examples()})


SUBJECTS: dict[str, Callable[[], Subject]] = {
    "vit": vit,
    "classifier100": _unseen("classifier100", "other examples", classifier100.evaluation),
    "crnn": crnn_columns,
    "convnet": _unseen("convnet", "test images", convnet.examples),
    "tagger": _unseen("tagger", "other words", tagger.examples),
    "albert": _unseen("albert", "other reactions", lambda: list(albert.examples())[::4]),
    "minilm": minilm_sentences,
    "minilm-glosses": minilm_glosses,
    "antiberty": _unseen("antiberty", "other sequences", lambda: antiberty.examples()[::2]),
    "whisper": _unseen("whisper", "other utterances", whisper.examples),
    "smollm2": smollm2_windows,
}
QUICK = ("vit", "minilm")


def _subject(
    source: Network, kind: Kind, evaluations: dict[str, Examples], name: str | None = None
) -> Subject:
    name = name or source.name
    return Subject(
        name=name,
        sources=tuple(source.sources),
        batches=source.batches,
        kind=kind,
        evaluations=evaluations,
        calibration=source.calibration,
        layers=LAYERS.get(name, ""),
        few_examples=FEW_EXAMPLES.get(name),
    )


def _texts(rows: Sequence[str], size: int = 32) -> Examples:
    """Sentences in MiniLM's tokens, the short ones first, so that little padding is computed."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    ordered = sorted(rows, key=len)
    return [
        (
            dict(
                tokenizer(
                    ordered[start : start + size],
                    padding=True,
                    truncation=True,
                    max_length=256,
                    return_tensors="pt",
                )
            ),
            None,
        )
        for start in range(0, len(rows), size)
    ]


def _next_tokens(windows: np.ndarray) -> Examples:
    """Windows of text, one a batch, and the token after each of their tokens."""
    ids = torch.from_numpy(windows)
    right = torch.full_like(ids, IGNORED)
    right[:, :-1] = ids[:, 1:]
    return [
        ({"input_ids": row}, after) for row, after in zip(ids.split(1), right.split(1), strict=True)
    ]


def _unscored(module: nn.Module) -> Score:
    raise NotImplementedError("files are judged by benchmarks.bits.fidelity")
