"""AdapterDrop: the first blocks of a network stay unchanged, either always or at random.

The backward pass stops at the first block that trains (Rücklé et al., "AdapterDrop: On the
Efficiency of Adapters in Transformers", EMNLP 2021, section 3). In the robust form the number K of
skipped blocks is drawn at each step. The network learns to work without adapting its first K
blocks, so the number of adapted blocks can be chosen afterwards.

Blocks are found by containers, not by names: the members of an nn.ModuleList or nn.Sequential, in
the order in which a forward reaches them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from itertools import takewhile

import torch
from torch import Tensor, nn

from lrcompress.compression.paired_inputs import layer_calls
from lrcompress.errors import TuneError
from lrcompress.layers import describe
from lrcompress.network.batches import Batch
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.training_setup import TrainingSetup, step_generator

Blocks = tuple[tuple[str, ...], ...]  # names of layers by block, the first block first


def blocks_in_depth_order(
    module: nn.Module, layers: Sequence[str], batch: Batch | None = None
) -> Blocks:
    """Group the layers by block, in the order of a forward on `batch`.

    A block is a member of the outermost container of which several members hold some of `layers`.
    Layers outside any block (an embedding, a head) are left out; if no layer is in a block, each
    layer is a block. Without a batch the order is that of `layers`. Layers that the forward does
    not reach come last.
    """
    called = {} if batch is None else layer_calls(module, layers, batch)
    order = list(called | dict.fromkeys(layers))
    containers = {
        name
        for name, child in module.named_modules()
        if isinstance(child, nn.ModuleList | nn.Sequential)
        and len({_member(name, layer) for layer in layers} - {None}) > 1
    }
    blocks: dict[str, list[str]] = {}
    for layer in order:
        held = [m for name in containers if (m := _member(name, layer)) is not None]
        if held:
            blocks.setdefault(min(held, key=len), []).append(layer)
    return tuple(map(tuple, blocks.values())) if blocks else tuple((layer,) for layer in order)


def _member(container: str, layer: str) -> str | None:
    """Name of the container's child that is the layer or contains it; None if there is none."""
    prefix = f"{container}." if container else ""
    if not layer.startswith(prefix):
        return None
    return prefix + layer.removeprefix(prefix).partition(".")[0]


def without_first(blocks: Blocks, skip: int) -> tuple[str, ...]:
    """Return the layers of all blocks except the first `skip`.

    Raises:
        TuneError: no block would be left, or `skip` is negative.
    """
    if not 0 <= skip < max(1, len(blocks)):
        raise TuneError(
            f"skip-first {skip}: the network has {len(blocks)} blocks; take 0 to "
            f"{max(0, len(blocks) - 1)}"
        )
    return tuple(layer for block in blocks[skip:] for layer in block)


class RandomDrop:
    """Resets the first K blocks to their initial values, K drawn at each step from 0 ... most.

    The initial values are those at construction: attach adapters before, train after.
    """

    def __init__(self, module: nn.Module, blocks: Blocks, *, most: int | None = None) -> None:
        """Copy the trainable parameters of all blocks.

        most: the largest K; None for all blocks except the last.

        Raises:
            TuneError: `most` is not between 1 and the number of blocks minus one.
        """
        self.most = len(blocks) - 1 if most is None else most
        if not 1 <= self.most < len(blocks):
            raise TuneError(
                f"random drop of up to {self.most} of {len(blocks)} blocks: take 1 to "
                f"{len(blocks) - 1}"
            )
        self._trained: list[Mapping[nn.Parameter, Tensor]] = [
            {
                parameter: parameter.detach().clone()
                for name in block
                for parameter in module.get_submodule(name).parameters()
                if parameter.requires_grad
            }
            for block in blocks
        ]

    @contextmanager
    def step(self, generator: torch.Generator | None = None) -> Iterator[int]:
        """Context for a step's forward and backward; yields K. The first K blocks get no gradient.

        K is drawn from `generator`, or from torch's global generator.
        """
        skip = int(torch.randint(self.most + 1, (), generator=generator))
        with self.dropped(skip):
            yield skip

    @contextmanager
    def dropped(self, skip: int) -> Iterator[None]:
        """Context in which the first `skip` blocks have their initial values.

        It also serves for measurements.
        """
        held = {p: p.data for block in self._trained[:skip] for p in block}
        for block in self._trained[:skip]:
            for parameter, start in block.items():
                parameter.data = start
                parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter, values in held.items():
                parameter.data = values
                parameter.requires_grad_(True)


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
    if options.random_skip:  # a block of compressed layers may be empty
        compressed = (tuple(name for name in block if name in layers) for block in blocks)
        return TrainedPart(tuple(layers), blocks=tuple(compressed))
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
