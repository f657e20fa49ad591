"""What trains where the first blocks of a network are skipped (AdapterDrop)."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import takewhile

from torch import nn

from lrcompress.compression.paired_inputs import layer_calls
from lrcompress.layers import describe
from lrcompress.network.batches import Batch
from lrcompress.tuning.adapter_drop import (
    Blocks,
    RandomDrop,
    blocks_in_depth_order,
    without_first,
)
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.training_setup import TrainingSetup, step_generator


@dataclass(frozen=True)
class TrainedPart:
    """Compressed layers that train, and parameters that must not: whatever comes before them."""

    layers: tuple[str, ...]
    fixed: frozenset[str] = frozenset()
    blocks: Blocks = ()  # the first of which are skipped at random


def trained_part(
    module: nn.Module,
    dense: nn.Module,
    layers: Sequence[str],
    batch: Batch,
    options: TuneOptions,
) -> TrainedPart:
    """What `options.skip_first` leaves of the compressed layers.

    Raises:
        TuneError: the network has too few blocks for it, or none of the rest is compressed.
    """
    skip = options.skip_first
    if not skip:
        return TrainedPart(tuple(layers))
    blocks = blocks_in_depth_order(dense, [spec.name for spec in describe(dense).layers], batch)
    kept = set(without_first(blocks, skip))
    compressed = tuple(
        tuple(name for name in block if name in layers) for block in blocks
    )  # as many blocks, some perhaps empty
    if options.random_skip:
        return TrainedPart(tuple(layers), blocks=compressed)
    early = {name for block in blocks[:skip] for name in block}
    fixed = _before(module, first=kept, skipped=early, batch=batch)
    return TrainedPart(tuple(n for n in layers if n not in early), fixed)


def _before(
    module: nn.Module, *, first: set[str], skipped: set[str], batch: Batch
) -> frozenset[str]:
    """Names of the parameters of the skipped layers, and of all modules that a forward reaches
    before any layer of `first`."""
    order = layer_calls(module, [name for name, _ in module.named_modules()], batch)
    early = set(takewhile(lambda name: name not in first, order))
    return frozenset(
        name
        for name, _ in module.named_parameters()
        if name.rpartition(".")[0] in early or any(name.startswith(f"{x}.") for x in skipped)
    )


def with_random_skips(course: TrainingSetup, part: TrainedPart) -> TrainingSetup:
    """Each step skips some of the first blocks; at most `skip_first`. Adapters are attached."""
    if not part.blocks:
        return course
    drop = RandomDrop(course.module, part.blocks, most=course.options.skip_first)
    seed = course.options.seed + 2

    def skipping(step: int) -> AbstractContextManager[object]:
        return drop.step(step_generator(seed, step))

    return replace(course, around_step=skipping)
