"""Measures the divergence of the compressed network's output from the dense one's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from lrcompress.compression.replace import Change, showing_originals
from lrcompress.distributed import in_turns
from lrcompress.errors import FitError
from lrcompress.network.batches import Batch, Batches
from lrcompress.network.call import call, frozen
from lrcompress.network.held_out_divergence import HeldOutDivergence
from lrcompress.network.readout import Readout
from lrcompress.progress import Progress, Step


@dataclass(frozen=True)
class Divergence:
    """Mean divergence per example, in the objective's unit.

    `top1_agreement` is the share of top-1 predictions that stayed; None if the output has none.
    """

    mean: float
    examples: int
    top1_agreement: float | None = None
    apart: float | None = None  # mean divergence between the dense outputs of two examples
    positions: float = 1.0  # counted per example, on average; `mean` is summed over them

    @property
    def per_position(self) -> float:
        return self.mean / self.positions


class _Sums(NamedTuple):
    """Sums over one batch."""

    total: float
    examples: int
    apart: float  # divergence between two examples of the batch
    pairs: int
    counted: float  # positions
    agreed: float = 0.0
    choices: float = 0.0


@torch.no_grad()
def measure_divergence(
    module: nn.Module,
    replacements: Sequence[Change],
    batches: Batches,
    readout: Readout,
    step: Step,
) -> Divergence:
    """Measure the divergence between the dense and the compressed network.

    They alternate batch by batch, so that no output has to be stored. Several processes share the
    batches.

    Raises:
        FitError: the compressed network's output is NaN or infinite.
    """

    def measured(batch: Batch) -> _Sums:
        with showing_originals(module, replacements):
            dense, weights = readout(call(module, batch), batch)
        other, _ = readout(call(module, batch), batch)
        if not bool(torch.isfinite(other).all()):
            raise FitError(
                "the compressed network's output is NaN or infinite; raise the budget or "
                "compress in float32"
            )
        return _compared(readout, dense, other, weights)

    found = []
    with frozen(module):
        for sums in in_turns(batches, measured):
            found.append(sums)
            step.advance()
    return _mean(found)


@dataclass(frozen=True)
class Measured:
    """A network's divergences; None if there are no such examples."""

    calibration: Divergence | None = None
    held_out: Divergence | None = None


def measure_both(
    module: nn.Module,
    replacements: Sequence[Change],
    readout: Readout | None,
    batches: Batches | None,
    confirming: Batches | None,
    progress: Progress,
) -> Measured:
    """Measure on the calibration batches and on the `confirming` ones, which decided nothing.

    Raises FitError like `measure_divergence`.
    """

    def measured(stage: str, given: Batches | None) -> Divergence | None:
        if readout is None or not given:
            return None
        with progress.stage(stage, len(given)) as step:
            return measure_divergence(module, replacements, given, readout, step)

    return Measured(measured("measure", batches), measured("confirm", confirming))


@torch.no_grad()
def measure_held_out(module: nn.Module, held_out: HeldOutDivergence) -> Divergence:
    """Measure the divergence from the dense outputs that `held_out` stores."""

    def measured(index: int) -> _Sums:
        batch, (dense, weights) = held_out.batches[index], held_out.outputs[index]
        other, _ = held_out.readout(call(module, batch), batch)
        return _compared(held_out.readout, dense, other, weights)

    places = range(len(held_out.batches))
    with frozen(module):
        return _mean(list(in_turns(places, measured) if held_out.shared else map(measured, places)))


def _compared(readout: Readout, dense: Tensor, other: Tensor, weights: Tensor) -> _Sums:
    total = float(readout.objective.divergence(dense, other, weights).sum())
    counts = readout.objective.agreement(dense, other, weights)
    between = _apart(readout, dense, weights)
    return _Sums(total, len(dense), *between, float(weights.sum()), *(counts or ()))


def _mean(batches: Sequence[_Sums]) -> Divergence:
    total, examples, apart, pairs, counted, agreed, choices = map(sum, zip(*batches, strict=True))
    return Divergence(
        # Rounding can make the divergence of equal outputs slightly negative
        mean=max(total, 0.0) / max(examples, 1),
        examples=examples,
        top1_agreement=agreed / choices if choices else None,
        apart=apart / pairs if pairs else None,
        positions=counted / examples if examples and counted else 1.0,
    )


def _apart(readout: Readout, dense: Tensor, weights: Tensor) -> tuple[float, int]:
    """Return the summed divergence between examples half a batch apart, and the number of pairs.

    Only positions that both examples have count. Neighbours are not paired: they may follow each
    other in time and be alike.
    """
    if len(dense) < 2:
        return 0.0, 0
    away = len(dense) // 2
    other, both = dense.roll(away, 0), weights * weights.roll(away, 0)
    counted = float(weights.sum()) / max(float(both.sum()), 1e-12)  # scales to all positions
    found = float(readout.objective.divergence(dense, other, both).sum())
    return found * counted, len(dense)
