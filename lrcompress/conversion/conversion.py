"""Descriptions of conversions, sufficient to repeat them without data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import nn

from lrcompress.layers import LeftAlone

Became = Literal["linear", "embedding", "conv1d", "conv2d", "attention", "encoder", "used"]

_ATTRIBUTE = "_lrcompress_converted"


@dataclass(frozen=True)
class Conversion:
    """One module that was replaced by a standard one of the same function.

    `input_shape` is the shape of a valid input: a call with one shows the module's weight.
    """

    name: str
    was: str  # class name
    became: Became
    input_shape: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()  # of a convolution: before and after, axis by axis
    same_padding: bool = False  # computed from the size of the input
    bias: str = ""  # the module's parameter that is added, if the operation has no bias
    scale: float | None = None  # factor on the output


@dataclass(frozen=True)
class ConversionReport:
    conversions: tuple[Conversion, ...]
    left_alone: tuple[LeftAlone, ...]  # layers to which no structure applies


@dataclass(frozen=True)
class Converted:
    """The conversions of a network since it was built.

    The fingerprint is that of the network before `convert_`; replaying is part of loading it.
    """

    conversions: tuple[Conversion, ...] = ()
    unconverted_fingerprint: str = ""


def converted_from(module: nn.Module) -> Converted:
    """Return the conversions of a network, in order; none if it is as it was built."""
    found = getattr(module, _ATTRIBUTE, None)
    return found if isinstance(found, Converted) else Converted()


def remember_(module: nn.Module, converted: Converted) -> None:
    setattr(module, _ATTRIBUTE, converted)
