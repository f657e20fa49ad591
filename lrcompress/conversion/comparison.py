"""Compares a custom layer with the standard layer that may replace it, on other inputs too."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.conversion.observation import Product
from lrcompress.network.agreement import agree, output

OTHER_SIZES = (-1, -2, 1, 2, 3)  # minus the example's size: all remainders of small strides


def resized(x: Tensor, change: int) -> Tensor:
    """Return an input with longer (shorter) axes and similar values, zero only by accident."""
    pads = [pad for size in x.shape[:1:-1] for pad in (0, max(change, 1 - size))]
    return functional.pad(x, pads, value=1.0) + 0.25


def other_inputs(x: Tensor, shown: Product) -> list[Tensor]:
    """Return other inputs than the example: other values, and for convolutions other sizes."""
    generator = torch.Generator().manual_seed(0)
    if shown.kind == "embedding":
        return [torch.randint(len(shown.weight), x.shape, generator=generator).to(x)]
    noise = torch.randn(x.shape, generator=generator).to(x)
    others = [0.5 * x + noise]
    if shown.kind in ("conv1d", "conv2d"):
        others += [resized(x, change) for change in OTHER_SIZES]
    return others


def same_output(layer: nn.Module, built: nn.Module, x: Tensor) -> bool:
    """Whether both layers give the same output, or the original one refuses the input."""
    theirs = output(lambda: layer(x.clone()))
    if isinstance(theirs, Exception):
        return True
    return isinstance(theirs, Tensor) and agree(output(lambda: built(x.clone())), theirs)


@contextmanager
def in_mode(module: nn.Module, *, training: bool) -> Iterator[dict[nn.Module, bool]]:
    """Context in training or evaluation mode; yields the previous modes, and restores them."""
    modes = {child: child.training for child in module.modules()}
    module.train(training)
    try:
        yield modes
    finally:
        for child, mode in modes.items():
            child.training = mode


def same_in_training(layer: nn.Module, x: Tensor) -> bool:
    """Whether training mode changes nothing: no dropout of weights, no statistics."""
    before = {name: value.clone() for name, value in layer.named_buffers()}
    theirs = output(lambda: layer(x.clone()))
    with in_mode(layer, training=True):
        training = output(lambda: layer(x.clone()))
    moved = [(name, x) for name, x in layer.named_buffers() if not torch.equal(x, before[name])]
    for name, value in moved:
        value.copy_(before[name])
    return not moved and agree(training, theirs)
