"""Floating-point operations of a whole network, including attention scores."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.layers import LayerSpec, output_rows
from lrcompress.network.batches import Batch, batch_size
from lrcompress.network.call import call
from lrcompress.network.flop_formulas import FORMULAS
from lrcompress.network.uncounted_operators import uncounted


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

    handles = [
        module.get_submodule(spec.name).register_forward_hook(
            partial(count, spec.name), prepend=True
        )
        for spec in layers
    ]
    try:
        counted = _counted(module, batch)
    finally:
        for handle in handles:
            handle.remove()
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
    counter = FlopCounterMode(display=False, custom_mapping=dict(FORMULAS))
    with torch.no_grad(), _Seen() as seen, counter:
        call(module, batch)
    return Work(counter.get_total_flops(), uncounted(seen.packets, counter.flop_registry))


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the operators that compute floating-point tensors.

    Entered before the counter, it sees the operators after the counter has decomposed them.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.packets: set[Any] = set()

    def __torch_dispatch__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        results = result if isinstance(result, tuple | list) else (result,)
        tensors = [x for x in results if isinstance(x, Tensor)]
        if any(x.is_floating_point() or x.is_complex() for x in tensors):
            self.packets.add(func._overloadpacket)  # type: ignore[attr-defined]
        return result
