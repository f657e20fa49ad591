"""Floating-point operations of a whole network, attention scores and all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.layers import LayerSpec, output_rows
from lrcompress.profiling.batches import Batch
from lrcompress.profiling.passes import call


def total_flops_per_example(
    module: nn.Module,
    batch: Batch,
    layers: Sequence[LayerSpec],
    rows_per_example: Mapping[str, float],
) -> float:
    """2 per multiply-add, for an average calibration example.

    torch counts one batch, padding included; the share of it outside the layers (attention
    scores, say) is carried over to the average example, whose rows hold no padding.
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
        with torch.no_grad(), _counter() as counter:
            call(module, batch)
    finally:
        for handle in handles:
            handle.remove()
    in_layers = sum(spec.flops_per_row * rows.get(spec.name, 0) for spec in layers)
    outside = max(0.0, counter.get_total_flops() - in_layers)
    average = sum(spec.flops_per_row * rows_per_example[spec.name] for spec in layers)
    return average * (1 + outside / in_layers) if in_layers else float(outside)


def counted_flops(module: nn.Module, batch: Batch) -> int:
    """What torch counts of one forward pass, padding included."""
    with torch.no_grad(), _counter() as counter:
        call(module, batch)
    total: int = counter.get_total_flops()
    return total


def _counter() -> FlopCounterMode:
    """torch's own table knows the fused attention of the GPU, but not the CPU's."""
    fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return FlopCounterMode(display=False, custom_mapping={fused: _attention_flops})


def _attention_flops(
    query: Sequence[int], key: Sequence[int], value: Sequence[int], *_: object, **__: object
) -> int:
    """Scores and their product with the values, from shapes (batch, heads, positions, width)."""
    pairs = query[0] * query[1] * query[2] * key[2]
    return 2 * pairs * (query[3] + value[3])
