"""Chunks of layers whose running moments fit in memory, and the passes that fill the moments."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor, nn

from lrcompress.distributed import failing_together, shard
from lrcompress.errors import DataError, ModelError
from lrcompress.layers import LayerSpec
from lrcompress.metrics import METRICS
from lrcompress.network.batches import Batch, Batches, examples_of, is_divisible
from lrcompress.network.call import call
from lrcompress.network.in_place import changes_in_place, saved_copies
from lrcompress.network.readout import Readout
from lrcompress.profiling.all_reduce import sum_, synchronise_
from lrcompress.profiling.collector import Collector
from lrcompress.profiling.input_moments import FULL_MOMENT_LIMIT
from lrcompress.profiling.options import ProfileOptions
from lrcompress.progress import Progress, Step


def chunked(layers: Sequence[LayerSpec], options: ProfileOptions) -> list[list[LayerSpec]]:
    """Split the layers into chunks whose running float64 moments fit in `max_memory` bytes.

    A single layer always forms a chunk. The sizes assume that no two layers share their input,
    because only a pass shows which do.
    """
    chunks: list[list[LayerSpec]] = [[]]
    held = 0
    for spec in layers:
        inputs, outputs = _moment_size(spec.in_features), _moment_size(spec.out_features)
        needs_outputs = METRICS[options.metric_with_data].needs_outputs
        size = 8 * spec.groups * (2 * inputs + outputs if needs_outputs else inputs)
        if options.max_memory is not None and chunks[-1] and held + size > options.max_memory:
            chunks.append([])
            held = 0
        chunks[-1].append(spec)
        held += size
    return chunks


def _moment_size(features: int) -> int:
    return features**2 if features <= FULL_MOMENT_LIMIT else features


def collected(
    module: nn.Module,
    chunk: Sequence[LayerSpec],
    batches: Batches,
    readout: Readout,
    options: ProfileOptions,
    progress: Progress,
    name: str,
) -> Collector:
    """Collect the moments of a chunk in one pass over the batches.

    Where sharing inputs is unsafe, a second pass copies the input of every layer. Several processes
    share the batches, and each gets the sums over all of them.

    Raises:
        DataError: a batch does not fit the network's forward.
        ModelError: an output is NaN or infinite, or no gradient can be taken.
    """
    names = [used for spec in chunk for used in (spec.name, *spec.tied)]
    watched = {used: module.get_submodule(used) for used in names}
    needs_outputs = METRICS[options.metric_with_data].needs_outputs
    for share_inputs in (True, False):
        collector = Collector(watched, needs_outputs, share_inputs)
        with progress.stage(name, len(shard(batches))) as step, failing_together():
            _collect(module, batches, collector, readout, options, step)
        synchronise_(collector)
        if collector.consistent:
            break
    sum_(collector)
    return collector


def _collect(
    module: nn.Module,
    batches: Batches,
    collector: Collector,
    readout: Readout,
    options: ProfileOptions,
    step: Step,
) -> None:
    """Fill `collector` from this process's share of the batches.

    The probes of a batch depend only on the seed and on its index, so they are the same in several
    passes (to save memory) and in several processes.
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
                generator = torch.Generator().manual_seed(options.seed + 7919 * index)
                _backpropagate(outputs, weights, readout, options.probes, generator, collector)
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
            run = partial(_outputs, module, batch, readout)
            return changes_in_place(collector.watched.values(), run)
    return False


def _outputs(module: nn.Module, batch: Batch, readout: Readout) -> Tensor:
    return readout(call(module, batch), batch)[0]


@torch.enable_grad()
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
