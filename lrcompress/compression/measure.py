"""How far the compressed network's output is from the dense one's, on real inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lrcompress.compression.replace import Replacement, show_originals_, show_replacements_
from lrcompress.distributed import in_turns
from lrcompress.errors import FitError
from lrcompress.profiling.batches import Batch, Batches
from lrcompress.profiling.passes import call, frozen
from lrcompress.profiling.readout import Readout
from lrcompress.progress import Step


@dataclass(frozen=True)
class Divergence:
    """Per example, in the objective's unit; `top1_agreement` where the output chooses something:
    the share of its choices that stayed."""

    mean: float
    examples: int
    top1_agreement: float | None = None


@dataclass(frozen=True)
class _Sums:
    """Over one batch."""

    total: float
    examples: int
    agreed: float = 0.0
    positions: float = 0.0


@torch.no_grad()
def measure_divergence(
    module: nn.Module,
    replacements: Sequence[Replacement],
    batches: Batches,
    readout: Readout,
    step: Step,
) -> Divergence:
    """Dense and compressed take turns batch by batch, so that no output has to be kept. Several
    processes share the batches out.

    Raises:
        FitError: the compressed network's output is NaN or infinite.
    """

    def measured(batch: Batch) -> _Sums:
        show_originals_(module, replacements)
        try:
            dense, weights = readout(call(module, batch), batch)
        finally:
            show_replacements_(module, replacements)
        other, _ = readout(call(module, batch), batch)
        if not bool(torch.isfinite(other).all()):
            raise FitError(
                "the compressed network's output is NaN or infinite; raise the budget or "
                "compress in float32"
            )
        total = float(readout.objective.divergence(dense, other, weights).sum())
        counts = readout.objective.agreement(dense, other, weights)
        return _Sums(total, len(dense), *(counts or ()))

    total, examples, agreed, positions = 0.0, 0, 0.0, 0.0
    with frozen(module):
        for sums in in_turns(batches, measured):
            total += sums.total
            examples += sums.examples
            agreed += sums.agreed
            positions += sums.positions
            step.advance()
    agreement = agreed / positions if positions else None
    return Divergence(total / max(examples, 1), examples, agreement)
