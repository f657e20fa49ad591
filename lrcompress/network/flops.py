"""Floating-point operations of a whole network, including attention scores."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.layers import LayerSpec, output_rows
from lrcompress.network.batches import Batch, batch_size
from lrcompress.network.call import call
from lrcompress.network.flop_formulas import FORMULAS
from lrcompress.network.operators import OperatorWatch, uncounted
from lrcompress.network.outputs import tensors_of


@dataclass(frozen=True)
class Work:
    """Floating-point operations, and the names of operators that could not be counted."""

    flops: float
    uncounted: tuple[str, ...] = ()


def total_flops_per_example(
    module: nn.Module,
    batch: Batch,
    layers: Sequence[LayerSpec],
    rows_per_example: Mapping[str, float],
) -> Work:
    """Return the FLOPs of an average calibration example, 2 per multiply-add.

    torch counts one batch, padding included. The share outside the layers (such as attention
    scores) is assumed to be the same in the average example, whose rows hold no padding.
    """
    rows: dict[str, int] = {}

    def count(name: str, layer: nn.Module, args: tuple[object, ...], output: Tensor) -> None:
        rows[name] = rows.get(name, 0) + output_rows(layer, output).shape[:-2].numel()

    with ExitStack() as hooks:
        for spec in layers:
            layer, hook = module.get_submodule(spec.name), partial(count, spec.name)
            hooks.enter_context(layer.register_forward_hook(hook, prepend=True))
        counted = _counted(module, batch)
    in_layers = sum(spec.flops_per_row * rows.get(spec.name, 0) for spec in layers)
    outside = max(0.0, counted.flops - in_layers)
    average = sum(spec.flops_per_row * rows_per_example[spec.name] for spec in layers)
    if in_layers:
        return Work(average * (1 + outside / in_layers), counted.uncounted)
    return Work(outside / batch_size(batch), counted.uncounted)


def counted_flops(module: nn.Module, batch: Batch) -> int:
    """Return the counted FLOPs of one forward pass, padding included."""
    return int(_counted(module, batch).flops)


def _counted(module: nn.Module, batch: Batch) -> Work:
    seen: set[Any] = set()  # the operators that compute floating-point tensors

    def note(func: Any, args: object, kwargs: object, result: object) -> None:
        if any(x.is_floating_point() or x.is_complex() for x in tensors_of(result)):
            seen.add(func._overloadpacket)

    counter = FlopCounterMode(display=False, custom_mapping=FORMULAS)
    # Entered before the counter, `note` gets the operators after the counter has decomposed them
    with torch.no_grad(), OperatorWatch(note), counter:
        call(module, batch)
    return Work(counter.get_total_flops(), uncounted(seen, counter.flop_registry))
