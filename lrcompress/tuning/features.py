"""Hidden features in which the compressed network should match the dense network.

They are the outputs of the repeated blocks that hold compressed layers (children of an
nn.ModuleList or nn.Sequential: encoder and decoder blocks, residual stages), as in FitNets (Romero
et al. 2015) and TinyBERT (Jiao et al. 2020, eq. 8). For a layer in no such block it is the layer's
own output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrcompress.network.batches import MASK, Batch, batch_size, without_padding
from lrcompress.network.call import call
from lrcompress.network.readout import Readout

Seen = list[list[Tensor]]  # for each watched module, the output of each call


@contextmanager
def watching(modules: Sequence[nn.Module]) -> Iterator[Seen]:
    """Context that records the modules' outputs, as clones that in-place changes do not affect."""
    seen: Seen = [[] for _ in modules]

    def keep(outputs: list[Tensor], raw: object) -> None:
        found = _tensor(raw)
        if found is not None:
            outputs.append(found.clone())

    handles = [
        module.register_forward_hook(lambda _m, _i, raw, outputs=outputs: keep(outputs, raw))
        for module, outputs in zip(modules, seen, strict=True)
    ]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def hidden_points(
    dense: nn.Module, layers: Sequence[str], batch: Batch, readout: Readout
) -> tuple[str, ...]:
    """Return the names of the modules to watch, found by running the dense network on `batch`.

    The inputs of a mixture's expert depend on the routing, so a block whose outputs do not have one
    row per example is replaced by the block around it. Modules whose output equals the network's
    are left out.
    """
    parts = dict(dense.named_modules())
    chains = {layer: _chain(layer, parts) for layer in layers}
    names = list(dict.fromkeys(name for chain in chains.values() for name in chain))
    with watching([parts[name] for name in names]) as seen:
        output, _ = readout(call(dense, batch), batch)
    examples = batch_size(batch)
    usable = {
        name
        for name, calls in zip(names, seen, strict=True)
        if calls and all(x.is_floating_point() and examples in x.shape[:2] for x in calls)
        if not (len(calls) == 1 and _same(calls[0], output, readout))
    }
    chosen = (next((name for name in chain if name in usable), None) for chain in chains.values())
    return tuple(dict.fromkeys(name for name in chosen if name is not None))


def hidden_difference(dense: Tensor, other: Tensor, batch: Batch) -> Tensor:
    """Return |f - g|^2 / |f - mean f|^2 of dense features f, without padding: a scalar."""
    mask = batch.get(MASK)
    f, g = _rows(dense.float(), mask), _rows(other.float(), mask)
    size = f.square().sum()
    spread = (f - f.mean(0)).square().sum()
    return (f - g).square().sum() / (spread + 1e-6 * size + 1e-12)


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Reshape to (rows, features); an image's channels are features and its pixels are rows."""
    if x.dim() >= 4:
        x = x.movedim(1, -1)
    if x.dim() < 2:
        x = x.unsqueeze(-1)
    flat = without_padding(x, x.shape[:-1], None if mask is None else mask.bool())
    return flat.reshape(-1, x.shape[-1])


def _chain(layer: str, parts: dict[str, nn.Module]) -> list[str]:
    """The blocks around a layer from the inside out, then the layer itself."""
    names = layer.split(".")
    around = [".".join(names[:depth]) for depth in range(len(names) - 1, 0, -1)]
    lists = (nn.ModuleList, nn.Sequential)
    blocks = [name for name in around if isinstance(parts[name.rpartition(".")[0]], lists)]
    return [*blocks, layer]


def _tensor(raw: object) -> Tensor | None:
    while isinstance(raw, tuple | list) and raw:
        raw = raw[0]
    return raw if isinstance(raw, Tensor) else None


def _same(seen: Tensor, output: Tensor, readout: Readout) -> bool:
    seen = readout.arranged(seen)
    return seen.shape == output.shape and bool(torch.equal(seen, output))
