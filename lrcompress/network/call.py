"""Calls of a network on a batch, in evaluation mode and on the device of its parameters."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from torch import nn

from lrcompress.errors import DataError, LrcompressError
from lrcompress.network.batches import Batch


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Context in evaluation mode without requires_grad on any parameter; restores both."""
    training = {m: m.training for m in module.modules()}
    wanted = {p: p.requires_grad for p in module.parameters()}
    module.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for m, mode in training.items():
            m.training = mode
        for parameter, flag in wanted.items():
            parameter.requires_grad_(flag)


def on_device(module: nn.Module, batch: Batch) -> Batch:
    """Return a copy of the batch, which the network may change, on the weights' device."""
    weights = chain(module.parameters(), module.buffers())  # stored codes are buffers
    device = next((tensor.device for tensor in weights), torch.device("cpu"))
    return {name: value.to(device, copy=True) for name, value in batch.items()}


def call(module: nn.Module, batch: Batch) -> object:
    """Return the network's raw output on the device of its parameters.

    Raises:
        DataError: the batch does not fit the network's forward.
    """
    try:
        return module(**on_device(module, batch))
    except LrcompressError:
        raise
    except Exception as cause:  # the user's own forward may raise anything
        shapes = ", ".join(f"{name} {tuple(value.shape)}" for name, value in batch.items())
        reason = str(cause).splitlines()[0] if str(cause) else type(cause).__name__
        raise DataError(
            f"the model cannot run on a batch of {shapes}: {reason}; check the data's names and "
            "shapes against the model's forward"
        ) from cause
