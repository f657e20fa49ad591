"""AdapterDrop: the first blocks of a network keep what they are, for good or at random.

Training stops at the first block that trains: what lies before it needs no backward pass (Rücklé et
al., "AdapterDrop: On the Efficiency of Adapters in Transformers", EMNLP 2021, section 3). In its
robust form K is drawn at each step, and the network learns to do without the adaptation of its
first K blocks, so that how many of them get it can be chosen afterwards.

Blocks are told by the network's own containers, never by names: the members of an nn.ModuleList or
nn.Sequential, in the order in which a forward reaches them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrcompress.compression.paired_inputs import layer_calls
from lrcompress.errors import TuneError
from lrcompress.network.batches import Batch

Blocks = tuple[tuple[str, ...], ...]
"""Names of layers by block, the first block first."""


def blocks_in_depth_order(
    module: nn.Module, layers: Sequence[str], batch: Batch | None = None
) -> Blocks:
    """The layers by the blocks that they are in, in the order of a forward on `batch`.

    A block is a member of the outermost container that has several with layers of these; one that
    is in no block (an embedding, a head) is left out, unless all are: then each is a block. Without
    a batch the order is that of registration. Layers that the forward does not reach come last.
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
    """The name of the container's child that the layer is or is in."""
    prefix = f"{container}." if container else ""
    if not layer.startswith(prefix):
        return None
    return prefix + layer.removeprefix(prefix).partition(".")[0]


def without_first(blocks: Blocks, skip: int) -> tuple[str, ...]:
    """The layers of all blocks but the first `skip`.

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
    """The first K blocks as they were when this was made, K drawn at each step from 0 ... most.

    Give it the network with adapters attached and not yet trained.
    """

    def __init__(self, module: nn.Module, blocks: Blocks, *, most: int | None = None) -> None:
        """most: the largest K; None for all blocks but the last.

        Raises:
            TuneError: `most` is not from 1 to the number of blocks less one.
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
        """Around a step's forward and backward; gives K, drawn from `generator` or from torch's
        own. Its blocks get no gradient."""
        skip = int(torch.randint(self.most + 1, (), generator=generator))
        with self.dropped(skip):
            yield skip

    @contextmanager
    def dropped(self, skip: int) -> Iterator[None]:
        """The first `skip` blocks as they were, for a measurement too."""
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
