"""Checks that a configuration does not describe a far larger model than its weights can fill."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.nn.modules import module as registrations

from lrcompress.errors import LrcompressError, ModelError
from lrcompress.messages import label

COUNTED = re.compile(r"(layers?|depths?|blocks|stages|experts|labels)$")
MOST_COUNTED = 2**20  # layers, labels, ...: lists of this length are made before any weight
MODULES_PER_TENSOR, SPARE_MODULES = 64, 4096
SPARE_NUMBERS = 2**20
MOST_BUFFERED = 2**28  # numbers in buffers, which the model computes itself, such as positions


@dataclass(frozen=True)
class Size:
    """The number of tensors and of values in weight files."""

    tensors: int
    numbers: int

    @classmethod
    def of_files(cls, paths: list[Path]) -> Size:
        """Count from the headers; the caller has checked that the files are complete."""
        shapes = []
        for path in paths:
            with safe_open(path, framework="pt") as file:
                shapes += [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
        return cls(len(shapes), sum(map(prod, shapes)))

    @classmethod
    def of_state(cls, state: Mapping[str, Tensor]) -> Size:
        return cls(len(state), sum(tensor.numel() for tensor in state.values()))


def check_counts(config: object, path: Path) -> None:
    """Raise ModelError for a configuration with more layers or labels than any model has."""
    for field, number in _counts(config):
        if number > MOST_COUNTED:
            raise ModelError(
                f"{path}: {label(field)} is {number}, more than any model has; correct it or copy "
                "the file again"
            )


def check_architecture(
    build: Callable[[], nn.Module], size: Size, where: Path, *, times: int
) -> None:
    """Build the architecture on the meta device, and stop if the weights could not fill it.

    times: parameters allowed per number in the weights. A few are enough for tied weights and
    for weights that a file leaves out; a compressed model needs many.

    Raises:
        ModelError: far more layers or parameters than the weights hold.
    """
    try:
        with torch.device("meta"), _bounded(size, where, times):
            build()
    except LrcompressError:
        raise
    except Exception:  # building the real model fails again and reports the error
        return


@contextmanager
def _bounded(size: Size, where: Path, times: int) -> Iterator[None]:
    """Count every module, parameter and buffer that is registered inside the block."""
    modules = MODULES_PER_TENSOR * size.tensors + SPARE_MODULES
    numbers = times * size.numbers + SPARE_NUMBERS
    left = {"modules": modules, "parameters": numbers, "buffered numbers": MOST_BUFFERED}

    def spend(kind: str, module: nn.Module, name: str, part: nn.Module | Tensor | None) -> None:
        left[kind] -= part.numel() if isinstance(part, Tensor) else int(kind == "modules")
        if left[kind] < 0:
            raise ModelError(
                f"{where}: describes a model with more {kind} than its weights could fill "
                f"({size.numbers:,} numbers in {size.tensors:,} tensors); check that it belongs "
                "to them"
            )

    with (
        registrations.register_module_module_registration_hook(partial(spend, "modules")),
        registrations.register_module_parameter_registration_hook(partial(spend, "parameters")),
        registrations.register_module_buffer_registration_hook(partial(spend, "buffered numbers")),
    ):
        yield


def _counts(value: Any, field: str = "") -> Iterator[tuple[str, int]]:
    """Yield the fields whose names say how often something is repeated, with their values."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield from _counts(item, str(name))
    elif isinstance(value, list):
        for item in value:
            if not isinstance(item, str):
                yield from _counts(item, field)
    elif isinstance(value, int | float) and not isinstance(value, bool) and COUNTED.search(field):
        yield field, value if isinstance(value, int) else MOST_COUNTED + 1 if value > 1e6 else 0
