"""Detect degenerate calibration data, which do not show what a network does.

On such data, predicted and measured divergences are small however the layers are compressed, which
looks like a good result.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from lrcompress.fingerprint import tensors_fingerprint
from lrcompress.network.batches import (
    MASK,
    Batch,
    Batches,
    batch_size,
    is_divisible,
    spread_examples,
)
from lrcompress.network.call import call
from lrcompress.network.readout import Readout

LARGEST_REPEATED = 0.5  # share of the examples that others repeat
SMALLEST_INPUT = 1e-19  # its square, 1e-38, is below the normal range of float32 (1.2e-38)
ROUNDING = 1e-5  # of the largest output: float32 rounding makes equal outputs differ by less
ALIKE = 1e-6  # mean divergence between two examples, below which they count as equal
OUTPUTS_LOOKED_AT = 64  # examples
CONSTANT_BY_NATURE = (MASK, "token_type_ids", "position_ids")


def degenerate(
    module: nn.Module, batches: Batches, others: Batches, readout: Readout
) -> tuple[str, ...]:
    """Return clauses that say why calibration and held-out batches are degenerate; empty if not."""
    everything = [*batches, *others]
    clause = (
        _inputs(everything) or _one_example(everything) or _outputs(module, everything, readout)
    )
    return (clause,) if clause else ()


def repeats(batches: Batches, others: Batches) -> tuple[str, ...]:
    """Return a clause if most examples are repeats, so that held-out examples are not new."""
    seen = _digests([*batches, *others])
    repeated = len(seen) - len(set(seen))
    if len(set(seen)) < 2 or repeated <= LARGEST_REPEATED * len(seen):
        return ()
    return (
        f"{repeated} of {len(seen)} calibration examples are repeats, so that those set aside are "
        "not new",
    )


def _inputs(batches: Batches) -> str:
    given = {
        name: [batch[name] for batch in batches if name in batch]
        for name in batches[0]
        if name not in CONSTANT_BY_NATURE
    }
    values = {name: _range(tensors) for name, tensors in given.items()}
    if all(low == high for low, high in values.values()):
        found = ", ".join(f"{name!r} {low:g}" for name, (low, _) in values.items())
        return f"every value of the calibration inputs is the same ({found})"
    largest = max(max(abs(low), abs(high)) for low, high in values.values())
    if largest < SMALLEST_INPUT:
        return (
            f"the largest value of the calibration inputs is {largest:.2g}, whose square is zero "
            "in float32; scale them as the model expects them"
        )
    return ""


def _range(tensors: Sequence[Tensor]) -> tuple[float, float]:
    held = [tensor.to(torch.float64) for tensor in tensors if tensor.numel()]
    if not held:
        return 0.0, 0.0
    return min(float(x.min()) for x in held), max(float(x.max()) for x in held)


def _one_example(batches: Batches) -> str:
    seen = _digests(batches)
    if len(seen) == 1:
        return "the calibration data hold a single example"
    return f"all {len(seen)} calibration examples are the same" if len(set(seen)) == 1 else ""


def _digests(batches: Batches) -> list[str]:
    """The digest of each example; empty where batches cannot be split into examples."""
    if not all(map(is_divisible, batches)):
        return []
    return [_digest(batch, row) for batch in batches for row in range(batch_size(batch))]


def _digest(batch: Batch, row: int) -> str:
    """The digest of one example without padding."""
    mask = batch.get(MASK)
    own = {name: value[row] for name, value in batch.items()}
    if mask is not None:
        kept = mask[row].bool()
        own = {name: x[kept] if x.shape == kept.shape else x for name, x in own.items()}
    return tensors_fingerprint(sorted(own.items()))


@torch.no_grad()
def _outputs(module: nn.Module, batches: Batches, readout: Readout) -> str:
    """Return a clause if the network gives the same output for all examples."""
    some = spread_examples(batches, OUTPUTS_LOOKED_AT)
    held: tuple[Tensor, Tensor] | None = None
    largest, spread, apart, pairs = 0.0, 0.0, 0.0, 0
    for batch in some:
        outputs, weights = readout(call(module, batch), batch)
        for one in zip(torch.split(outputs, 1), torch.split(weights, 1), strict=True):
            if held is not None and held[0].shape == one[0].shape:
                both = held[1] * one[1]
                difference = (one[0] - held[0]).float() * _features(both, one[0])
                spread = max(spread, float(difference.abs().max()))
                apart += max(float(readout.objective.divergence(held[0], one[0], both).sum()), 0.0)
                pairs += 1
            largest = max(largest, float(one[0].float().abs().max()))
            held = one
    if pairs and (spread <= ROUNDING * largest or apart <= ALIKE * pairs):
        return (
            "the network gives the same output for all calibration examples, so that they do "
            "not show what it does"
        )
    return ""


def _features(weights: Tensor, outputs: Tensor) -> Tensor:
    """The weights with a feature dimension; 1 where outputs are packed."""
    fits = weights.shape == outputs.shape[:-1]
    return weights.unsqueeze(-1) if fits else outputs.new_ones(())
