"""Other weights: large parameters that belong to no layer that a plan can change.

Such are the weights of recurrent and transposed convolutional layers, of learned positions, and of
modules of one's own. Their structure stays, but they may be stored in fewer bits. Their values are
rounded in place, and the graph finds them by their values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from lrcompress.number_formats.exact_rows import exact_rows, nbytes, rounded_rows

SMALLEST = 4096  # parameters of a weight that is worth another format
OTHER_FORMATS = ("fp32", "fp16", "int8")
_ATTRIBUTE = "_lrcompress_other_weights"


def other_weights(module: nn.Module, layers: Collection[str]) -> dict[str, nn.Parameter]:
    """Return the large float32 parameters by name, without those of the named layers."""
    owned = {id(p) for name in layers for p in module.get_submodule(name).parameters()}
    return {
        name: parameter
        for name, parameter in module.named_parameters()
        if id(parameter) not in owned
        and parameter.dtype == torch.float32
        and parameter.ndim > 1
        and parameter.numel() >= SMALLEST
        and ".parametrizations." not in f".{name}"
    }


def bytes_in(format: str, weights: Mapping[str, Tensor]) -> int:
    """Return the bytes of the weights in one of OTHER_FORMATS."""
    if format == "int8":
        return sum(nbytes(tuple(weight.shape)) for weight in weights.values())
    width = {"fp32": 4, "fp16": 2}[format]
    return sum(width * weight.numel() for weight in weights.values())


@torch.no_grad()
def round_others_(module: nn.Module, layers: Collection[str], format: str) -> None:
    """Round the other weights of a network in place, and remember the format for its graph."""
    for weight in other_weights(module, layers).values():
        weight.copy_(_rounded(weight, format))
    remember_others_(module, format)


def remember_others_(module: nn.Module, format: str) -> None:
    setattr(module, _ATTRIBUTE, format)


def others_format(module: nn.Module) -> str:
    """Return the format in which the graph of a network stores its other weights."""
    return str(getattr(module, _ATTRIBUTE, "fp32"))


def stored_others(module: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of a network whose values are exact in its format of other weights."""
    format = others_format(module)
    if format == "fp32":
        return {}
    return {
        name: weight
        for name, weight in other_weights(module, ()).items()
        if (
            exact_rows(weight.detach()) is not None
            if format == "int8"
            else torch.equal(_rounded(weight, format), weight)
        )
    }


@contextmanager
def rounded_others(module: nn.Module, layers: Collection[str], format: str) -> Iterator[None]:
    """Context in which the other weights are rounded."""
    before = {
        name: weight.detach().clone() for name, weight in other_weights(module, layers).items()
    }
    own = others_format(module)
    try:
        if format != "fp32":
            round_others_(module, layers, format)
        yield
    finally:
        remember_others_(module, own)
        parameters = dict(module.named_parameters())
        with torch.no_grad():
            for name, values in before.items():
                parameters[name].copy_(values)


def _rounded(weight: Tensor, format: str) -> Tensor:
    if format == "int8":
        return rounded_rows(weight)
    return weight.half().to(weight.dtype) if format == "fp16" else weight
