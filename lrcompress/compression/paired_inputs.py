"""Moments of a layer's inputs in the dense and in the compressed network, paired by example."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from lrcompress.distributed import in_turns
from lrcompress.layers import input_rows, weight_matrix
from lrcompress.network.batches import MASK, Batch, Batches, without_padding
from lrcompress.network.call import call, frozen, on_device


class Forward(Protocol):
    def __call__(self, *, dense: bool) -> None:
        """Make the network compute with its dense or its compressed layers."""
        ...


@dataclass(frozen=True, eq=False)
class Inputs:
    """Centred moments over rows of x (dense) and x~ (compressed), per group, float64."""

    cross: Tensor  # E[x x~^T] - E[x] E[x~]^T: (g, n, n)
    compressed: Tensor  # E[x~ x~^T] - E[x~] E[x~]^T: (g, n, n)
    dense_mean: Tensor  # (g, n)
    compressed_mean: Tensor  # (g, n)

    def correction(self, damping: float, *, centred: bool) -> Tensor:
        """Return B C~^-1 - I of shape (g, n, n), damped towards zero if rows are few.

        centred: a bias compensates for the mean remaining error, so B and C~ are covariances.
        Without a bias, the weight must give the mean too: B = E[x x~^T] and C~ = E[x~ x~^T].
        """
        cross, second = self.cross, self.compressed
        if not centred:
            cross = cross + _outer(self.dense_mean, self.compressed_mean)
            second = second + _outer(self.compressed_mean, self.compressed_mean)
        energy = second.diagonal(dim1=-2, dim2=-1).mean(-1)
        eye = torch.eye(second.shape[-1], dtype=torch.float64, device=second.device)
        # Dead inputs have no energy, and need no correction
        energy = torch.where(energy > 0, energy, 1.0)
        ridge = damping * energy[:, None, None] * eye
        change: Tensor = torch.linalg.solve(second + ridge, (cross - second).mT).mT
        return change


def _outer(left: Tensor, right: Tensor) -> Tensor:
    """Outer products: (g, n) and (g, k) -> (g, n, k)."""
    return left.unsqueeze(-1) * right.unsqueeze(-2)


class _Reached(Exception):  # not an error: the only way to stop a forward pass early
    pass


def layer_calls(module: nn.Module, names: Sequence[str], batch: Batch) -> dict[str, int]:
    """Count the calls of each layer, in the order of the first calls; without uncalled layers."""
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


@dataclass(eq=False)
class PairedInputs:
    """Moments of layers' inputs in both networks, over the rows that are not padding.

    originals: dense layers by name. One pass captures the dense inputs of all of them; the rows
    are kept until their layer is requested. once: a forward pass calls each of them a single time,
    so it can stop early.
    """

    module: nn.Module
    originals: Mapping[str, nn.Module]
    batches: Batches
    show: Forward
    once: bool
    _waiting: dict[tuple[str, int], Tensor | None] = field(default_factory=dict)

    def of(self, name: str) -> Inputs:
        """Compute the moments for the compressed network as it is now. Call once per layer.

        Batches whose rows cannot be paired, because the networks route them differently, are
        skipped. Several processes share the batches. Each gets all rows, to sum in the same order.
        """
        sums = _Sums(weight_matrix(self.originals[name]))

        def pair(index: int) -> tuple[Tensor | None, Tensor | None]:
            dense = self._dense(name, index)
            only = {name: self.originals[name]}
            return dense, _captured(self.module, only, self.batches[index], once=self.once)[name]

        for dense, other in in_turns(range(len(self.batches)), pair):
            if dense is not None and other is not None and dense.shape == other.shape:
                sums.add(dense, other)
        return sums.finish()

    def _dense(self, name: str, index: int) -> Tensor | None:
        if (name, index) not in self._waiting:
            self.show(dense=True)
            try:
                rows = _captured(self.module, self.originals, self.batches[index], once=self.once)
            finally:
                self.show(dense=False)
            self._waiting |= {(layer, index): found for layer, found in rows.items()}
        return self._waiting.pop((name, index))


class _Sums:
    def __init__(self, weight: Tensor) -> None:
        groups, _, n = weight.shape
        square, line = (groups, n, n), (groups, n)
        self._sums = [torch.zeros(s, dtype=torch.float64) for s in (square, square, line, line)]
        self._rows = 0

    def add(self, dense: Tensor, other: Tensor) -> None:
        """Add rows. Both tensors are (rows, g, n)."""
        terms = [
            torch.einsum("rgn,rgk->gnk", dense, other),
            torch.einsum("rgn,rgk->gnk", other, other),
            dense.sum(0),
            other.sum(0),
        ]
        pairs = zip(self._sums, terms, strict=True)
        self._sums = [total.to(term.device) + term for total, term in pairs]
        self._rows += len(dense)

    def finish(self) -> Inputs:
        rows = max(self._rows, 1)
        cross, second, dense_mean, other_mean = (total / rows for total in self._sums)
        return Inputs(
            cross=cross - _outer(dense_mean, other_mean),
            compressed=second - _outer(other_mean, other_mean),
            dense_mean=dense_mean,
            compressed_mean=other_mean,
        )


def _captured(
    module: nn.Module, originals: Mapping[str, nn.Module], batch: Batch, *, once: bool
) -> dict[str, Tensor | None]:
    """Return the rows of all calls of each layer, (rows, g, n); None if it is not called."""
    held: dict[str, list[Tensor]] = {}
    mask = batch.get(MASK)
    mask = None if mask is None or mask.dim() != 2 else mask.bool()

    def capture(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Tensor]) -> None:
            given = args[0] if args else next(iter(named.values()))
            rows = input_rows(originals[name], given.detach())
            # copied at once, since the network may overwrite its activations in place
            kept = without_padding(rows, rows.shape[:-2], mask).to(torch.float32, copy=True)
            held.setdefault(name, []).append(kept)
            if once and len(held) == len(originals):
                raise _Reached

        return hook

    handles = [
        module.get_submodule(name).register_forward_pre_hook(capture(name), with_kwargs=True)
        for name in originals
    ]
    try:
        with torch.no_grad(), frozen(module), suppress(_Reached):
            module(**on_device(module, batch))
    finally:
        for handle in handles:
            handle.remove()
    return {name: torch.cat(held[name]) if name in held else None for name in originals}
