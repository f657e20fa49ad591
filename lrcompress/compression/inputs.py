"""What a layer is fed in the dense and in the compressed network, example by example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from lrcompress.distributed import in_turns
from lrcompress.layers import input_rows, weight_matrix
from lrcompress.profiling.batches import MASK, Batch, Batches
from lrcompress.profiling.padding import without_padding
from lrcompress.profiling.passes import call, frozen, on_device


class Show(Protocol):
    def __call__(self, *, dense: bool) -> None:
        """Make the network compute with its dense or its compressed layers."""
        ...


@dataclass(frozen=True, eq=False)
class Inputs:
    """Centred moments over rows of x (dense) and x~ (compressed), per group, float64."""

    cross: Tensor  # B = E[x x~^T]: (g, n, n)
    compressed: Tensor  # C~ = E[x~ x~^T]: (g, n, n)
    dense_mean: Tensor  # (g, n)
    compressed_mean: Tensor  # (g, n)

    def correction(self, damping: float) -> Tensor:
        """B C~^-1 - I, damped towards zero where rows are few: (g, n, n)."""
        n = self.compressed.shape[-1]
        energy = self.compressed.diagonal(dim1=-2, dim2=-1).mean(-1)
        eye = torch.eye(n, dtype=torch.float64, device=self.compressed.device)
        # Dead inputs have no energy, and nothing to correct either
        energy = torch.where(energy > 0, energy, 1.0)
        ridge = damping * energy[:, None, None] * eye
        change: Tensor = torch.linalg.solve(
            self.compressed + ridge, (self.cross - self.compressed).mT
        ).mT
        return change


class _Reached(Exception):  # not an error: the only way to leave a forward early
    pass


def layer_calls(module: nn.Module, names: Sequence[str], batch: Batch) -> dict[str, int]:
    """How often each layer computes, in the order in which they first do; without those that
    never do."""
    calls: dict[str, int] = {}

    def seen(name: str) -> Callable[..., None]:
        return lambda *_: calls.update({name: calls.get(name, 0) + 1})

    handles = [module.get_submodule(n).register_forward_pre_hook(seen(n)) for n in names]
    try:
        with torch.no_grad(), frozen(module):
            call(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    return calls


def paired_inputs(
    module: nn.Module, name: str, original: nn.Module, batches: Batches, show: Show, *, once: bool
) -> Inputs:
    """Moments of the layer's inputs in both networks, over the rows that are not padding.

    once: a forward calls the layer a single time, so it need not be run to its end.
    Batches whose rows cannot be paired, since the networks route them differently, do not count.
    Several processes share the batches out; each gets all rows, to sum in the same order.
    """
    groups, _, n = weight_matrix(original).shape
    square, line = (groups, n, n), (groups, n)
    sums = [torch.zeros(shape, dtype=torch.float64) for shape in (square, square, line, line)]
    rows = 0

    def pair(batch: Batch) -> tuple[Tensor | None, Tensor | None]:
        show(dense=True)
        try:
            dense = _captured(module, name, original, batch, once=once)
        finally:
            show(dense=False)
        return dense, _captured(module, name, original, batch, once=once)

    for dense, other in in_turns(batches, pair):
        if dense is None or other is None or dense.shape != other.shape:
            continue
        terms = [
            torch.einsum("rgn,rgk->gnk", dense, other),
            torch.einsum("rgn,rgk->gnk", other, other),
            dense.sum(0),
            other.sum(0),
        ]
        sums = [total.to(term.device) + term for total, term in zip(sums, terms, strict=True)]
        rows += len(dense)
    cross, second, dense_mean, other_mean = (total / max(rows, 1) for total in sums)
    return Inputs(
        cross=cross - dense_mean.unsqueeze(-1) * other_mean.unsqueeze(-2),
        compressed=second - other_mean.unsqueeze(-1) * other_mean.unsqueeze(-2),
        dense_mean=dense_mean,
        compressed_mean=other_mean,
    )


def _captured(
    module: nn.Module, name: str, original: nn.Module, batch: Batch, *, once: bool
) -> Tensor | None:
    """The rows of all calls of the layer: (rows, g, n); None if this batch never reaches it."""
    held: list[Tensor] = []
    mask = batch.get(MASK)
    mask = None if mask is None or mask.dim() != 2 else mask.bool()

    def capture(_: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
        rows = input_rows(original, (args[0] if args else next(iter(named.values()))).detach())
        # a copy at once: the network may overwrite its activations in place
        held.append(without_padding(rows, rows.shape[:-2], mask).to(torch.float32, copy=True))
        if once:
            raise _Reached

    handle = module.get_submodule(name).register_forward_pre_hook(capture, with_kwargs=True)
    try:
        with torch.no_grad(), frozen(module), suppress(_Reached):
            module(**on_device(module, batch))
    finally:
        handle.remove()
    return torch.cat(held) if held else None
