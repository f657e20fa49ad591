"""How well a module answers: its metric, its loss and how certain it is."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrcompress.network.batches import Batch

IGNORED = -100  # a position that has no right answer


@dataclass(frozen=True)
class Score:
    """metric: higher is better
    nats: mean negative log-likelihood of the right answers; None where nothing is classified
    entropy: mean entropy of the answers' distributions, in nats
    """

    metric: float
    nats: float | None = None
    entropy: float | None = None


def classified(module: nn.Module, examples: Iterable[tuple[Batch, Tensor]]) -> Score:
    """Accuracy over all positions whose right class is not IGNORED.

    Each example is a batch and its right classes, shaped as the logits without their last axis.
    """
    hits, nats, entropy, count = 0, 0.0, 0.0, 0
    for batch, right in examples:
        logits = logits_of(module, batch)
        kept = right != IGNORED
        rows, answers = logits[kept].double(), right[kept]  # (n, classes), (n,)
        logs = rows.log_softmax(-1)
        hits += int((rows.argmax(-1) == answers).sum())
        nats -= float(logs.gather(1, answers.unsqueeze(1)).sum())
        entropy -= float((logs.exp() * logs).sum())
        count += len(answers)
    return Score(hits / count, nats / count, entropy / count)


def logits_of(module: nn.Module, batch: Batch) -> Tensor:
    """What the module returns, or what it returns first."""
    module.eval()
    with torch.no_grad():
        output = module(**batch)
    if isinstance(output, Tensor):
        return output
    return torch.as_tensor(output["logits"] if "logits" in output else output[0])


def portions(batch: Batch, right: Tensor, size: int) -> list[tuple[Batch, Tensor]]:
    """The examples of one large batch, `size` at a time."""
    return [
        ({name: part[start : start + size] for name, part in batch.items()}, right[start:][:size])
        for start in range(0, len(right), size)
    ]
