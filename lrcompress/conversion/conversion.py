"""What was converted: enough of it to do the same again without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lrcompress.layers import LeftAlone

Became = Literal["linear", "embedding", "conv1d", "conv2d", "attention", "encoder", "used"]

_ATTRIBUTE = "_lrcompress_converted"


@dataclass(frozen=True)
class Conversion:
    """One module that a standard one of the same function stands for.

    `input_shape` is of an input that the module takes: called on one it shows its weight.
    """

    name: str
    was: str  # the class
    became: Became
    input_shape: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()  # of a convolution: before and after, axis by axis
    same_padding: bool = False  # as much as the size of the input asks for
    bias: str = ""  # the module's parameter that is added, where the operation gets none
    scale: float | None = None  # what the output is multiplied by


@dataclass(frozen=True)
class ConversionReport:
    conversions: tuple[Conversion, ...]
    left_alone: tuple[LeftAlone, ...]  # with weights that no structure applies to now


@dataclass(frozen=True)
class Converted:
    """What happened to a network since it was built.

    The fingerprint is of before `convert_` changed it; what was replayed is part of loading it.
    """

    conversions: tuple[Conversion, ...] = ()
    unconverted_fingerprint: str = ""


def converted_from(module: nn.Module) -> Converted:
    """The conversions of a network, in their order; none if it is as it was built."""
    found = getattr(module, _ATTRIBUTE, None)
    return found if isinstance(found, Converted) else Converted()


def remember_(module: nn.Module, converted: Converted) -> None:
    setattr(module, _ATTRIBUTE, converted)
