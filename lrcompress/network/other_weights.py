"""Other weights: large parameters that belong to no layer that a plan can change.

Such are the weights of recurrent and transposed convolutional layers, of learned positions, and of
modules of one's own. Their structure stays, but they may be stored in fewer bits. Their values are
rounded in place, and the graph finds them by their values.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrcompress.errors import FitError
from lrcompress.number_formats import Fp16
from lrcompress.number_formats.exact_rows import exact_rows, nbytes, rounded_rows
from lrcompress.structures.format_range import check_range

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


@dataclass(frozen=True, eq=False)
class RoundedWeight:
    """A parameter that keeps its place and has its own or rounded values."""

    parameter: nn.Parameter
    original: Tensor
    rounded: Tensor

    @torch.no_grad()
    def show_original_(self, module: nn.Module) -> None:
        self.parameter.copy_(self.original)

    @torch.no_grad()
    def show_compressed_(self, module: nn.Module) -> None:
        self.parameter.copy_(self.rounded)


@torch.no_grad()
def round_others_(
    module: nn.Module, layers: Collection[str], format: str
) -> tuple[RoundedWeight, ...]:
    """Round the other weights of a network in place, and remember the format for its graph.

    format: one of OTHER_FORMATS; fp32 changes nothing.

    Raises:
        FitError: a weight is beyond the range of the format, whether or not data reach it. Nothing
            is changed then.
    """
    if format == "fp32":
        return ()
    changed = tuple(
        RoundedWeight(weight, weight.detach().clone(), _in_range(name, weight, format))
        for name, weight in other_weights(module, layers).items()
    )
    for change in changed:
        change.show_compressed_(module)
    remember_others_(module, format)
    return changed


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
    own = others_format(module)
    changed = round_others_(module, layers, format)
    try:
        yield
    finally:
        remember_others_(module, own)
        for change in changed:
            change.show_original_(module)


def _in_range(name: str, weight: Tensor, format: str) -> Tensor:
    """Return the weight rounded; raises FitError, naming it, if the format cannot hold it."""
    try:
        if format == "fp16":
            check_range(weight, Fp16())
    except FitError as cause:
        raise FitError(f"{name}: {cause}") from cause
    rounded = _rounded(weight, format)
    if not bool(rounded.isfinite().all()):
        raise FitError(f"{name}: its values are too large for {format}; leave its format out")
    return rounded


def _rounded(weight: Tensor, format: str) -> Tensor:
    if format == "int8":
        return rounded_rows(weight)
    assert format == "fp16"
    return weight.half().to(weight.dtype)
