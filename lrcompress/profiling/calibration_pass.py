"""Passes over the calibration batches that fill a collector."""

from __future__ import annotations

from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from lrcompress.distributed import shard
from lrcompress.errors import DataError, ModelError
from lrcompress.network.batches import Batch, Batches, examples_of, is_divisible
from lrcompress.network.call import call
from lrcompress.network.in_place import changes_in_place, saved_copies
from lrcompress.network.readout import Readout
from lrcompress.profiling.collector import Collector
from lrcompress.progress import Step


def collect(
    module: nn.Module,
    batches: Batches,
    collector: Collector,
    readout: Readout,
    *,
    probes: int,
    seed: int,
    step: Step,
) -> None:
    """Fill `collector` from this process's share of the batches.

    The probes of a batch depend only on the seed and on its index, so they are the same in several
    passes (to save memory) and in several processes.

    Raises:
        DataError: a batch does not fit the network's forward.
        ModelError: an output is NaN or infinite, or no gradient can be taken.
    """
    needed = collector.with_sensitivity and _changes_in_place(module, batches, collector, readout)
    with collector.watching(), saved_copies(needed=needed):
        for index, batch in shard(list(enumerate(batches))):
            collector.begin_batch(batch)
            with torch.set_grad_enabled(collector.with_sensitivity):
                outputs, weights = readout(call(module, batch), batch)
            if not bool(torch.isfinite(outputs).all()):
                raise ModelError(
                    f"the model's output on calibration batch {index} is NaN or infinite; "
                    "check the weights and this batch"
                )
            # Without requires_grad, no watched layer reaches the output
            if collector.with_sensitivity and outputs.requires_grad:
                generator = torch.Generator().manual_seed(seed + 7919 * index)
                with torch.enable_grad():
                    _backpropagate(outputs, weights, readout, probes, generator, collector)
            del outputs, weights  # large with a large vocabulary; freed before the next batch
            collector.end_batch()
            step.advance()


def _changes_in_place(
    module: nn.Module, batches: Batches, collector: Collector, readout: Readout
) -> bool:
    """Whether gradients need saved copies, tested on one example or, if that fails, on a batch."""
    first = batches[0]
    for batch in (examples_of(first, 0, 1) if is_divisible(first) else first, first):
        with suppress(DataError):
            layers = (watch.module for watch in collector.watches)
            return changes_in_place(layers, partial(_outputs, module, batch, readout))
    return False


def _outputs(module: nn.Module, batch: Batch, readout: Readout) -> Tensor:
    return readout(call(module, batch), batch)[0]


def _backpropagate(
    outputs: Tensor,
    weights: Tensor,
    readout: Readout,
    probes: int,
    generator: torch.Generator,
    collector: Collector,
) -> None:
    dense = outputs.detach().cpu()
    for probe in range(probes):
        v = readout.probe(dense, weights.detach().cpu(), generator)
        try:
            outputs.backward(v.to(outputs), retain_graph=probe + 1 < probes)  # type: ignore[no-untyped-call]
        except RuntimeError as cause:
            raise ModelError(
                f"no gradient can be taken through the model: {str(cause).splitlines()[0]}; use "
                "--metric input-weighted, which needs none"
            ) from cause
        collector.end_probe()
