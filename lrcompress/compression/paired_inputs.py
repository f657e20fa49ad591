"""Moments of a layer's inputs in the dense and in the compressed network, paired by example."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from lrcompress.compression.replace import Change, showing_originals
from lrcompress.distributed import in_turns
from lrcompress.layers import input_rows, weight_matrix
from lrcompress.network.batches import MASK, Batch, Batches, without_padding
from lrcompress.network.call import call, frozen, on_device


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

    def count(name: str, *_: object) -> None:
        calls[name] = calls.get(name, 0) + 1

    with ExitStack() as hooks, torch.no_grad(), frozen(module):
        for name in names:
            layer = module.get_submodule(name)
            hooks.enter_context(layer.register_forward_pre_hook(partial(count, name)))
        call(module, batch)
    return calls


@dataclass(eq=False)
class PairedInputs:
    """Moments of layers' inputs in both networks, over the rows that are not padding.

    originals: dense layers by name. One pass captures the dense inputs of all of them; the rows
    are kept until their layer is requested. replacements: all of the network's. once: a forward
    pass calls each of `originals` a single time, so it can stop early.
    """

    module: nn.Module
    originals: Mapping[str, nn.Module]
    batches: Batches
    replacements: Sequence[Change]
    once: bool
    _waiting: dict[tuple[str, int], Tensor | None] = field(default_factory=dict)

    def of(self, name: str) -> Inputs:
        """Compute the moments for the compressed network as it is now. Call once per layer.

        Batches whose rows cannot be paired, because the networks route them differently, are
        skipped. Several processes share the batches. Each gets all rows, to sum in the same order.
        """
        groups, _, n = weight_matrix(self.originals[name]).shape
        sizes = ((groups, n, n), (groups, n, n), (groups, n), (groups, n))
        sums = [torch.zeros(size, dtype=torch.float64) for size in sizes]
        rows = 0

        def pair(index: int) -> tuple[Tensor | None, Tensor | None]:
            dense = self._dense(name, index)
            only = {name: self.originals[name]}
            return dense, _captured(self.module, only, self.batches[index], once=self.once)[name]

        for dense, other in in_turns(range(len(self.batches)), pair):
            if dense is None or other is None or dense.shape != other.shape:
                continue
            terms = (
                torch.einsum("rgn,rgk->gnk", dense, other),
                torch.einsum("rgn,rgk->gnk", other, other),
                dense.sum(0),
                other.sum(0),
            )
            sums = [total.to(term.device) + term for total, term in zip(sums, terms, strict=True)]
            del terms  # two of them are as large as a moment
            rows += len(dense)
        cross, second, dense_mean, other_mean = (total / max(rows, 1) for total in sums)
        return Inputs(
            cross=cross - _outer(dense_mean, other_mean),
            compressed=second - _outer(other_mean, other_mean),
            dense_mean=dense_mean,
            compressed_mean=other_mean,
        )

    def _dense(self, name: str, index: int) -> Tensor | None:
        if (name, index) not in self._waiting:
            with showing_originals(self.module, self.replacements):
                rows = _captured(self.module, self.originals, self.batches[index], once=self.once)
            self._waiting |= {(layer, index): found for layer, found in rows.items()}
        return self._waiting.pop((name, index))


def _captured(
    module: nn.Module, originals: Mapping[str, nn.Module], batch: Batch, *, once: bool
) -> dict[str, Tensor | None]:
    """Return the rows of all calls of each layer, (rows, g, n); None if it is not called."""
    held: dict[str, list[Tensor]] = {}
    mask = batch.get(MASK)
    mask = None if mask is None or mask.dim() != 2 else mask.bool()

    def capture(
        name: str, _: nn.Module, args: tuple[Tensor, ...], named: Mapping[str, Tensor]
    ) -> None:
        given = args[0] if args else next(iter(named.values()))
        rows = input_rows(originals[name], given.detach())
        # copied at once, since the network may overwrite its activations in place
        kept = without_padding(rows, rows.shape[:-2], mask).to(torch.float32, copy=True)
        held.setdefault(name, []).append(kept)
        if once and len(held) == len(originals):
            raise _Reached

    with ExitStack() as hooks, torch.no_grad(), frozen(module), suppress(_Reached):
        for name in originals:
            layer, hook = module.get_submodule(name), partial(capture, name)
            hooks.enter_context(layer.register_forward_pre_hook(hook, with_kwargs=True))
        module(**on_device(module, batch))
    return {name: torch.cat(held[name]) if name in held else None for name in originals}
