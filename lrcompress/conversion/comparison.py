"""Compares a custom layer with the standard layer that may replace it, on other inputs too."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.conversion.observation import Product
from lrcompress.network.agreement import agree, output

OTHER_SIZES = (-1, -2, 1, 2, 3)  # minus the example's size: all remainders of small strides


def resized(x: Tensor, sizes: tuple[int, ...]) -> Tensor:
    """Return an input of another size with similar values, zero only by accident."""
    pads: list[int] = []
    for old, new in zip(x.shape[2:], sizes, strict=True):
        pads = [0, new - old, *pads]
    return functional.pad(x, pads, value=1.0) + 0.25


def other_inputs(x: Tensor, shown: Product) -> list[Tensor]:
    """Return other inputs than the example: other values, and for convolutions other sizes."""
    generator = torch.Generator().manual_seed(0)
    if shown.kind == "embedding":
        return [torch.randint(len(shown.weight), x.shape, generator=generator).to(x)]
    noise = torch.randn(x.shape, generator=generator).to(x)
    others = [0.5 * x + noise]
    if shown.kind in ("conv1d", "conv2d"):
        for change in OTHER_SIZES:
            others.append(resized(x, tuple(max(1, size + change) for size in x.shape[2:])))
    return others


def same_output(layer: nn.Module, built: nn.Module, x: Tensor) -> bool:
    """Whether both layers give the same output, or the original one refuses the input."""
    theirs = output(lambda: layer(x.clone()))
    if isinstance(theirs, Exception):
        return True
    return isinstance(theirs, Tensor) and agree(output(lambda: built(x.clone())), theirs)


def same_in_training(layer: nn.Module, x: Tensor) -> bool:
    """Whether training mode changes nothing: no dropout of weights, no statistics."""
    before = {name: value.clone() for name, value in layer.named_buffers()}
    modes = {child: child.training for child in layer.modules()}
    theirs = output(lambda: layer(x.clone()))
    layer.train()
    try:
        training = output(lambda: layer(x.clone()))
    finally:
        for child, mode in modes.items():
            child.training = mode
    moved = False
    for name, value in layer.named_buffers():
        if not torch.equal(value, before[name]):
            value.copy_(before[name])
            moved = True
    return not moved and agree(training, theirs)
