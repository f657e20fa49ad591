"""How faithful a file is to the dense graph, and how well it answers; measured in ONNX Runtime."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from benchmarks.bits.subject import Examples, Subject, feed_of
from benchmarks.unseen_networks.score import IGNORED
from lrcompress.errors import DataError
from lrcompress.export.random_feeds import NUMPY_DTYPES
from lrcompress.export.session import Session, open_session
from lrcompress.network.batches import Batch
from sample_models.metrics import embedding_fidelity

Scores = dict[str, float]
Reference = Mapping[str, Sequence[Tensor]]
Direction = Literal["higher", "lower"]

# What decides between two files of a kind of network, and which way it is better.
DECIDES: Mapping[str, tuple[str, Direction]] = {
    "embedding": ("cosine", "higher"),
    "classes": ("kl", "lower"),
}
_OUTPUTS = ("logits", "last_hidden_state")


class Graph:
    """An ONNX file in a session of one thread, which answers batches as its network would."""

    def __init__(self, path: Path) -> None:
        self.session: Session = open_session(path, threads=1)
        self.inputs = {given.name: NUMPY_DTYPES[given.type] for given in self.session.get_inputs()}
        names = [output.name for output in self.session.get_outputs()]
        self.output = next((name for name in _OUTPUTS if name in names), names[0])

    def answer(self, batch: Batch) -> Tensor:
        """The network's main output, in float32."""
        feed: dict[str, Any] = feed_of(batch, self.inputs)
        return torch.from_numpy(self.session.run([self.output], feed)[0]).float()


def reference(subject: Subject, dense: Path) -> Reference:
    """What the dense graph answers: evaluation set → one tensor a batch, as `fidelity` needs it."""
    graph = Graph(dense)
    return {
        name: [graph.answer(batch) for batch, _ in examples]
        for name, examples in subject.evaluations.items()
    }


def fidelity(subject: Subject, dense: Reference, file: Path) -> dict[str, Scores]:
    """Return the scores of a file on each evaluation set.

    embedding: `cosine`, `neighbours` and `correlation` (sample_models.metrics.EmbeddingFidelity)
    classes: `kl`, the mean of KL(dense || file) in nats a position; `same`, the share of positions
        with the dense graph's first choice; where there are right answers also `accuracy` and
        `perplexity`

    Raises:
        ModelError: a file cannot be read, or ONNX Runtime has no kernel for one of its nodes.
    """
    score = _SCORES[subject.kind]
    graph = Graph(file)
    return {
        name: score(examples, dense[name], graph) for name, examples in subject.evaluations.items()
    }


def _embedding_scores(examples: Examples, dense: Sequence[Tensor], graph: Graph) -> Scores:
    pairs = list(zip(examples, dense, strict=True))
    found = embedding_fidelity(
        torch.cat([_pooled(hidden, batch) for (batch, _), hidden in pairs]),
        torch.cat([_pooled(graph.answer(batch), batch) for batch, _ in examples]),
    )
    return {
        "cosine": found.mean_cosine,
        "neighbours": found.neighbour_agreement,
        "correlation": found.similarity_correlation,
    }


def _pooled(hidden: Tensor, batch: Batch) -> Tensor:
    """The mean over real tokens.  (B, width)"""
    mask = batch["attention_mask"].unsqueeze(-1).float()  # (B, T, 1)
    return (hidden * mask).sum(1) / mask.sum(1)


def _class_scores(examples: Examples, dense: Sequence[Tensor], graph: Graph) -> Scores:
    divergence, same, hits, nats, count, answered = 0.0, 0, 0, 0.0, 0, 0
    for (batch, right), logits in zip(examples, dense, strict=True):
        kept = None if right is None else right != IGNORED
        ours, theirs = _judged(graph.answer(batch), kept), _judged(logits, kept)  # (n, classes)
        divergence += float((theirs.exp() * (theirs - ours)).sum())
        same += int((ours.argmax(-1) == theirs.argmax(-1)).sum())
        count += len(ours)
        if right is not None and kept is not None:
            answers = right[kept]
            hits += int((ours.argmax(-1) == answers).sum())
            nats -= float(ours.gather(1, answers.unsqueeze(1)).sum())
            answered += len(answers)
    if not count:
        raise DataError("an evaluation set judges no position; give it examples")
    scores = {"kl": divergence / count, "same": same / count}
    if answered:
        scores |= {"accuracy": hits / answered, "perplexity": math.exp(nats / answered)}
    return scores


def _judged(logits: Tensor, kept: Tensor | None) -> Tensor:
    """Log-probabilities of the judged positions, in float64.  (n, classes)"""
    rows = logits.flatten(0, -2) if kept is None else logits[kept]
    return rows.double().log_softmax(-1)


_SCORES = {"embedding": _embedding_scores, "classes": _class_scores}
