"""The arguments of a module's forward, and checks that the data fits them."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import DataError
from lrcompress.messages import listed, one_line
from lrcompress.network.batches import Batch
from lrcompress.sources.steady import check_steady


@dataclass(frozen=True)
class Arguments:
    names: tuple[str, ...]
    required: tuple[str, ...]
    takes_any: bool  # forward(**inputs) without named arguments


def arguments(module: nn.Module) -> Arguments:
    """Return the named arguments of `module.forward`."""
    parameters = inspect.signature(module.forward).parameters.values()
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return Arguments(
        names=tuple(p.name for p in named),
        required=tuple(p.name for p in named if p.default is p.empty),
        takes_any=not named and any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def check_names(names: Iterable[str], module: nn.Module, where: str) -> None:
    """Raise DataError unless forward takes inputs of these names and needs no others."""
    taken = arguments(module)
    given = list(names)
    unknown = [] if taken.takes_any else [name for name in given if name not in taken.names]
    if unknown:
        raise DataError(
            f"{where}: the model has no input {listed(unknown)}; "
            f"its inputs are {listed(taken.names, most=12)}"
        )
    absent = [name for name in taken.required if name not in given]
    if absent:
        raise DataError(f"{where}: the model also needs {listed(absent)}; add it to the data")


def vocabulary(module: nn.Module) -> int | None:
    """Return the vocabulary size in the model's configuration, if it has one."""
    size = getattr(text_config(module), "vocab_size", None)
    return size if isinstance(size, int) and size > 0 else None


def text_config(module: nn.Module) -> Any:
    """Return the configuration of the model's text part, or the only one; None without one."""
    config: Any = getattr(module, "config", None)
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def check_token_ids(ids: Iterable[Tensor], module: nn.Module, where: str) -> None:
    """Raise DataError for a token id that the model has no embedding for."""
    size = vocabulary(module)
    if size is None:
        return
    for tensor in ids:
        low, high = int(tensor.min()), int(tensor.max())
        if low < 0 or high >= size:
            raise DataError(
                f"{where}: token id {low if low < 0 else high} is outside the model's vocabulary "
                f"of {size}; use the tokenizer that belongs to the model"
            )


@torch.no_grad()
def check_runs(module: nn.Module, batches: Sequence[Batch], where: str) -> None:
    """Run the examples most likely to fail: the last (the longest text), and the largest ids.

    Raises:
        DataError: forward fails on one of them.
        ModelError: the same input gives another output at each call.
    """
    for batch, row in _extremes(batches):
        # Copies, because the network may change its inputs in place
        example = {name: tensor[row : row + 1].clone() for name, tensor in batch.items()}
        try:
            module(**{name: tensor.clone() for name, tensor in example.items()})
        except Exception as cause:  # the model's code may raise anything
            kinds = {name: str(t.dtype).removeprefix("torch.") for name, t in example.items()}
            given = ", ".join(f"{n} {kinds[n]} {tuple(t.shape)}" for n, t in example.items())
            raise DataError(
                f"{where}: the model fails on it ({type(cause).__name__}: {one_line(cause)}; "
                f"given {given}); check shapes, dtypes and ranges"
            ) from cause
    check_steady(module, {name: tensor[:1] for name, tensor in batches[-1].items()}, where)


def _extremes(batches: Sequence[Batch]) -> list[tuple[Batch, int]]:
    """Return the last batch's first row, and the row with the maximum of each integer input."""
    found = {(len(batches) - 1, 0)}
    whole = [name for name, t in batches[0].items() if not t.is_floating_point()]
    for name in whole:
        # Converted to int64: torch has no maximum for booleans
        largest = max(range(len(batches)), key=lambda i: int(batches[i][name].long().max()))
        values = batches[largest][name].long()
        found.add((largest, int(values.reshape(len(values), -1).amax(1).argmax())))
    return [(batches[i], row) for i, row in sorted(found)]
