"""How far the compressed network's output is from the dense one's, on real inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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
    apart: float | None = None  # mean divergence between the dense outputs of two examples


@dataclass(frozen=True)
class _Sums:
    """Over one batch."""

    total: float
    examples: int
    apart: float  # between neighbouring examples, as many as have a neighbour
    pairs: int
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
        return _Sums(total, len(dense), *_apart(readout, dense, weights), *(counts or ()))

    total, examples, agreed, positions = 0.0, 0, 0.0, 0.0
    apart, pairs = 0.0, 0
    with frozen(module):
        for sums in in_turns(batches, measured):
            total += sums.total
            examples += sums.examples
            agreed += sums.agreed
            positions += sums.positions
            apart += sums.apart
            pairs += sums.pairs
            step.advance()
    agreement = agreed / positions if positions else None
    between = apart / pairs if pairs else None
    # Rounding makes that of equal outputs a little less than nothing
    return Divergence(max(total, 0.0) / max(examples, 1), examples, agreement, between)


def _apart(readout: Readout, dense: Tensor, weights: Tensor) -> tuple[float, int]:
    """Sum of the divergences between each example and the next one of the batch, over positions
    that both have, and the number of pairs."""
    if len(dense) < 2:
        return 0.0, 0
    other, both = dense.roll(1, 0), weights * weights.roll(1, 0)
    counted = float(weights.sum()) / max(float(both.sum()), 1e-12)  # for positions left out
    found = float(readout.objective.divergence(dense, other, both).sum())
    return found * counted, len(dense)
