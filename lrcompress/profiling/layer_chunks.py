"""Chunks of layers whose running moments fit in memory, and the passes that fill the moments."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lrcompress.distributed import failing_together, shard
from lrcompress.layers import LayerSpec
from lrcompress.metrics import METRICS, Metric
from lrcompress.network.batches import Batches
from lrcompress.network.readout import Readout
from lrcompress.profiling.all_reduce import agree_, sum_
from lrcompress.profiling.calibration_pass import collect
from lrcompress.profiling.collector import Collector, Watch
from lrcompress.profiling.input_moments import FULL_MOMENT_LIMIT
from lrcompress.profiling.options import ProfileOptions
from lrcompress.progress import Progress


def chunked(
    layers: Sequence[LayerSpec], max_memory: int | None, metric: Metric
) -> list[list[LayerSpec]]:
    """Split the layers into chunks whose running float64 moments fit in `max_memory` bytes.

    A single layer always forms a chunk. The sizes assume that no two layers share their input,
    because only a pass shows which do.
    """
    chunks: list[list[LayerSpec]] = [[]]
    held = 0
    for spec in layers:
        inputs, outputs = _moment_size(spec.in_features), _moment_size(spec.out_features)
        features = 2 * inputs + outputs if metric.needs_outputs else inputs
        size = 8 * spec.groups * features
        if max_memory is not None and chunks[-1] and held + size > max_memory:
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
    metric: str,
    options: ProfileOptions,
    progress: Progress,
    name: str,
) -> Collector:
    """Collect the moments of a chunk in one pass over the batches.

    Where sharing inputs is unsafe, a second pass copies the input of every layer. Several processes
    share the batches, and each gets the sums over all of them.
    """
    watches = [
        Watch(used, module.get_submodule(used))
        for spec in chunk
        for used in (spec.name, *spec.tied)
    ]
    for share_inputs in (True, False):
        collector = Collector(watches, METRICS[metric].needs_outputs, share_inputs)
        with progress.stage(name, len(shard(batches))) as step, failing_together():
            collect(
                module,
                batches,
                collector,
                readout,
                probes=options.probes,
                seed=options.seed,
                step=step,
            )
        agree_(collector)
        if collector.consistent:
            break
    sum_(collector)
    return collector
