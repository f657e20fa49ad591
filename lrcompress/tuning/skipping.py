"""Select what trains if the first blocks of a network are skipped (AdapterDrop)."""

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
    """Compressed layers that train, and the parameters before them, which must stay fixed."""

    layers: tuple[str, ...]
    fixed: frozenset[str] = frozenset()
    blocks: Blocks = ()  # for random skips of the first blocks


def trained_part(
    module: nn.Module,
    dense: nn.Module,
    layers: Sequence[str],
    batch: Batch,
    options: TuneOptions,
) -> TrainedPart:
    """Return the part that trains under `options.skip_first`.

    Raises:
        TuneError: the network has too few blocks.
    """
    skip = options.skip_first
    if not skip:
        return TrainedPart(tuple(layers))
    blocks = blocks_in_depth_order(dense, [spec.name for spec in describe(dense).layers], batch)
    kept = set(without_first(blocks, skip))
    compressed = tuple(
        tuple(name for name in block if name in layers) for block in blocks
    )  # a block may be empty
    if options.random_skip:
        return TrainedPart(tuple(layers), blocks=compressed)
    early = {name for block in blocks[:skip] for name in block}
    fixed = _before(module, first=kept, skipped=early, batch=batch)
    return TrainedPart(tuple(n for n in layers if n not in early), fixed)


def _before(
    module: nn.Module, *, first: set[str], skipped: set[str], batch: Batch
) -> frozenset[str]:
    """Names of the parameters of skipped layers and of modules called before any of `first`."""
    order = layer_calls(module, [name for name, _ in module.named_modules()], batch)
    early = set(takewhile(lambda name: name not in first, order))
    return frozenset(
        name
        for name, _ in module.named_parameters()
        if name.rpartition(".")[0] in early or any(name.startswith(f"{x}.") for x in skipped)
    )


def with_random_skips(setup: TrainingSetup, part: TrainedPart) -> TrainingSetup:
    """Return the setup with random skips of up to `skip_first` blocks. Attach adapters before."""
    if not part.blocks:
        return setup
    drop = RandomDrop(setup.module, part.blocks, most=setup.options.skip_first)
    seed = setup.options.seed + 2

    def skipping(step: int) -> AbstractContextManager[object]:
        return drop.step(step_generator(seed, step))

    return replace(setup, around_step=skipping)
