"""Subjects of quality benchmarks: a dense network, its calibration data, and its own metric."""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import nn

from lrcompress.network.batches import Batches
from lrcompress.sources.data import load_batches
from lrcompress.sources.models import load_model
from lrcompress.sources.options import DataOptions
from sample_models import metrics, text

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")  # Debian's dataset-fashion-mnist

Evaluate = Callable[[nn.Module], dict[str, float]]


@dataclass(frozen=True, eq=False)
class Subject:
    """A network to compress. Methods are compared by the score that `headline` names.

    `higher_is_better` is the direction of that score.
    """

    name: str
    module: nn.Module
    batches: Batches
    evaluate: Evaluate
    headline: str
    higher_is_better: bool = True
    include: tuple[str, ...] = ()
    pooling: str | None = None
    calibration: str = ""
    evaluation: str = ""
    lessons: Batches = ()  # data for tuning; empty: the calibration data
    taught: str = ""  # a description of the tuning data


TEXTS: dict[str, Callable[[int, int], list[str]]] = {
    "bible sentences": text.bible_sentences,
    "bible paragraphs": text.bible_paragraphs,
    "wordnet glosses": text.wordnet_glosses,
    "python docs": text.python_doc_paragraphs,
}


def minilm(
    calibration: str, count: int, evaluations: Sequence[str], lessons: Sequence[str] = ()
) -> Subject:
    """Make all-MiniLM-L6-v2's encoder; the score is the mean cosine on text from other sources."""
    from transformers import AutoTokenizer

    from sample_models.minilm import prepare

    folder = prepare(Path(tempfile.mkdtemp()) / "minilm")
    loaded = load_model(str(folder))
    taught = TEXTS[calibration](count, 0)

    def batched(rows: Sequence[str]) -> Batches:
        texts = folder.parent / "texts.txt"
        texts.write_text("\n".join(rows), encoding="utf-8")
        return load_batches(str(texts), loaded, DataOptions())

    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = {name: TEXTS[name](512, 1) for name in evaluations}
    others = [row for row in TEXTS[calibration](1024, 1) if row not in set(taught)]
    held_out[f"other {calibration}"] = others[:512]
    dense = {name: metrics.embed(loaded.module, tokenizer, rows) for name, rows in held_out.items()}

    def evaluate(module: nn.Module) -> dict[str, float]:
        scores: dict[str, float] = {}
        for name, rows in held_out.items():
            found = metrics.embedding_fidelity(dense[name], metrics.embed(module, tokenizer, rows))
            scores[f"cosine, {name}"] = found.mean_cosine
            scores[f"neighbours, {name}"] = found.neighbour_agreement
            scores[f"Spearman, {name}"] = found.similarity_correlation
        return scores

    return Subject(
        name=f"MiniLM, {count} {calibration}",
        module=loaded.module,
        batches=batched(taught),
        evaluate=evaluate,
        headline=f"cosine, {evaluations[0]}",
        include=("encoder.*",),
        pooling=loaded.pooling,
        calibration=f"{count} {calibration}",
        evaluation=f"512 texts each of {', '.join(held_out)}",
        lessons=batched(lessons) if lessons else (),
    )


LESSONS = 6000  # number of paragraphs, and of glosses
LESSON_BATCHES = 400  # batches of 4 kB


def minilm_with_lessons() -> Subject:
    """Make MiniLM, calibrated on 1,200 paragraphs and tuned on two kinds of text.

    No text for calibration or tuning is used for evaluation.
    """
    kinds = ("bible paragraphs", "wordnet glosses")
    held_out = {row for kind in kinds for row in TEXTS[kind](1024, 1)}
    rows = [row for kind in kinds for row in TEXTS[kind](LESSONS, 0) if row not in held_out]
    random.Random(0).shuffle(rows)
    subject = minilm(kinds[0], 1200, (kinds[1], "python docs"), lessons=rows)
    return replace(subject, taught=f"{len(rows)} bible paragraphs and wordnet glosses")


def text_gpt_with_lessons() -> Subject:
    """Make the GPT, tuned on 1.6 MB of its training books, which do not include Luke."""
    from sample_models.text_gpt import data

    return replace(
        text_gpt(),
        lessons=data.training_batches(LESSON_BATCHES, seed=0),
        taught=f"{LESSON_BATCHES} batches of 4 kB of its training text",
    )


def text_gpt() -> Subject:
    """Make the byte-level GPT; the score is nats per byte on a book not used for training."""
    from sample_models.text_gpt import data
    from sample_models.text_gpt.model import build
    from sample_models.weights import load_weights

    module = build()
    load_weights(module, Path(data.__file__).parent / "model.safetensors")
    return Subject(
        name="GPT",
        module=module.eval(),
        batches=list(data.calibration()),
        evaluate=data.evaluate_slice,
        headline="nats_per_byte",
        higher_is_better=False,
        include=("blocks.*",),
        calibration="committed slice",
        evaluation="committed slice of Luke",
    )


def fashion(name: str) -> Subject:
    """Make the Fashion-MNIST ViT or CNN; the score is the accuracy on test images."""
    from importlib import import_module

    from sample_models.weights import load_weights

    data = import_module(f"sample_models.{name}.data")
    module: nn.Module = import_module(f"sample_models.{name}.model").build()
    load_weights(module, Path(data.__file__).parent / "model.safetensors")
    whole = FASHION_MNIST.is_dir()
    return Subject(
        name=name,
        module=module.eval(),
        batches=list(data.calibration()),
        evaluate=data.evaluate if whole else data.evaluate_slice,
        headline="accuracy",
        calibration="committed training images",
        evaluation="10,000 test images" if whole else "512 committed test images",
    )
