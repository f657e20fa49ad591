"""The divergence of candidates from the dense network's stored outputs on held-out examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrcompress.distributed import in_turns
from lrcompress.network.batches import Batch, Batches, batch_size, evenly_spread
from lrcompress.network.call import call, frozen
from lrcompress.network.readout import Readout

LARGEST_KEPT = 2**26  # output values: 256 MB


@dataclass(frozen=True, eq=False)
class HeldOutDivergence:
    """Mean output divergence of a network from the reference network, whose outputs are stored."""

    readout: Readout
    batches: tuple[Batch, ...]
    outputs: tuple[tuple[Tensor, Tensor], ...]  # outputs and weights of each batch
    shared: bool = False  # all processes ask for the same divergences and share the batches

    @property
    def positions(self) -> float:
        """Mean number of positions per example that count, that is, are not padding."""
        counted = sum(float(weights.sum()) for _, weights in self.outputs)
        return counted / max(sum(map(batch_size, self.batches)), 1) or 1.0

    @torch.no_grad()
    def divergence(self, module: nn.Module) -> float:
        """Return the mean divergence of `module` per example.

        Infinite where the output is not finite, so that such a network is never chosen.
        """

        def found(index: int) -> float:
            batch, (dense, weights) = self.batches[index], self.outputs[index]
            other, _ = self.readout(call(module, batch), batch)
            return float(self.readout.objective.divergence(dense, other, weights).sum())

        places = range(len(self.batches))
        with frozen(module):
            total = sum(in_turns(places, found) if self.shared else map(found, places))
        examples = sum(map(batch_size, self.batches))
        return max(total, 0.0) / examples if total == total else float("inf")


@torch.no_grad()
def held_out_divergence(
    module: nn.Module, batches: Batches, readout: Readout, *, shared: bool = False
) -> HeldOutDivergence:
    """Return the divergence from `module` in its current state.

    It holds as many batches as fit in LARGEST_KEPT, evenly spread because batches are sorted by
    length.
    """
    first = _from_first(module, batches, readout, shared=shared)
    if len(first.batches) == len(batches):
        return first
    spread = evenly_spread(batches, len(first.batches))
    del first
    return _from_first(module, spread, readout, shared=shared)


def _from_first(
    module: nn.Module, batches: Batches, readout: Readout, *, shared: bool
) -> HeldOutDivergence:
    kept: list[Batch] = []
    outputs: list[tuple[Tensor, Tensor]] = []
    size = 0
    with frozen(module):
        for batch in batches:
            output, weights = readout(call(module, batch), batch)
            size += output.numel()
            if kept and size > LARGEST_KEPT:
                break
            kept.append(batch)
            outputs.append((output, weights))
    return HeldOutDivergence(readout, tuple(kept), tuple(outputs), shared)
