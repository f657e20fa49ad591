"""A network as an exporter sees it: tensors in by position, named tensors out, one dtype inside."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lrcompress.errors import ExportError
from lrcompress.network.batches import Batch

CACHES = ("past_key_values", "mems")  # state of a decoder between calls; the graph has none

_AnyModule = TypeVar("_AnyModule", bound=nn.Module)


def named_outputs(raw: object) -> dict[str, Tensor]:
    """The tensors of a network's output by the names that its field knows.

    A mapping or a dataclass keeps its keys, a tuple counts from ``output_0``, a bare tensor is
    ``output``; nested ones join their names with ``_``, and where that gives one name twice the
    second one is numbered. Caches are dropped.
    """
    if isinstance(raw, Tensor):
        return {"output": raw}
    found: dict[str, Tensor] = {}
    for name, tensor in _flatten(raw, "output" if isinstance(raw, tuple | list) else ""):
        found[unused_name(name or "output", found)] = tensor
    return found


def unused_name(name: str, taken: Container[str]) -> str:
    """The name, numbered from 2 where it is taken."""
    numbered = (f"{name}_{number}" for number in count(2))
    return next(one for one in chain([name], numbered) if one not in taken)


def _flatten(raw: object, prefix: str) -> Iterable[tuple[str, Tensor]]:
    if isinstance(raw, Tensor):
        yield prefix, raw
        return
    for key, value in (parts_of(raw) or {}).items():
        if key not in CACHES:
            yield from _flatten(value, f"{prefix}_{key}" if prefix else str(key))


def parts_of(raw: object) -> Mapping[object, object] | None:
    """What a container of outputs holds, by key, field or place; None for what is no container."""
    if isinstance(raw, Mapping):
        return raw
    if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
        return {field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}
    if isinstance(raw, tuple | list):
        return dict(enumerate(raw))
    return None


class NamedForward(nn.Module):
    """Calls `module` with named tensors and returns its named outputs as a tuple.

    `dtype` is what the module computes in. With `keep_io` floating-point tensors cross the border
    as float32, otherwise in `dtype`. The module is a copy, whose experts are made traceable.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[str], dtype: torch.dtype, *, keep_io: bool
    ) -> None:
        super().__init__()
        self.module = batched_experts_(module)
        self.inputs = tuple(inputs)
        self.dtype = dtype
        self.border_dtype = torch.float32 if keep_io else dtype

    def crossing(self, batch: Batch) -> Batch:
        """The batch in the dtype of the border."""
        return {name: _to(batch[name], self.border_dtype) for name in self.inputs}

    def outputs(self, *values: Tensor) -> dict[str, Tensor]:
        arguments = {
            name: _to(value, self.dtype) for name, value in zip(self.inputs, values, strict=True)
        }
        named = named_outputs(self.module(**copied(arguments)))
        return {name: _to(value, self.border_dtype) for name, value in named.items()}

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Copies: an input that is passed through, or one tensor that is returned twice, would be
        one value of the graph, which has one name."""
        return tuple(value.clone() for value in self.outputs(*values).values())


def _to(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def copied(batch: Batch) -> Batch:
    """For a network that may change its inputs in place."""
    return {name: value.clone() for name, value in batch.items()}


def check_arguments(module: nn.Module, batch: Batch) -> None:
    """Raise ExportError if the forward does not take exactly such named tensors."""
    signature = inspect.signature(module.forward)
    try:
        signature.bind(**batch)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "nothing"
        raise ExportError(
            f"{type(module).__name__}.forward: {error} (given: {', '.join(batch) or 'nothing'}; "
            f"it takes: {takes}); name the data's tensors as the arguments of forward"
        ) from None


def copy_structure(
    module: _AnyModule,
    tensor: Callable[[str, Tensor], Tensor],
) -> _AnyModule:
    """A copy whose parameters and buffers are `tensor(name, original)`; ties stay ties.

    Nothing is copied that `tensor` hands back as it is, so the copy of a large model is small.
    """
    memo: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        values = tensor(name, parameter.detach())
        memo[id(parameter)] = nn.Parameter(values, requires_grad=False)
    for name, buffer in module.named_buffers():
        memo[id(buffer)] = tensor(name, buffer)
    for part in module.modules():  # what a part computed once and keeps may hold a gradient's graph
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # whatever a module's attributes raise when they are copied
        raise ExportError(
            f"{type(module).__name__} cannot be copied for export ({error}); "
            "remove the attribute that refuses copy.deepcopy"
        ) from error


def batched_experts_(module: _AnyModule) -> _AnyModule:
    """Have transformers' mixtures of experts compute all tokens in one product: their other ways
    are an operator that no graph has, or a loop over the experts that the values ask for."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = "batched_mm"  # type: ignore[union-attr]
    return module


def without_cache_(module: nn.Module) -> None:
    """Tell every part that has a configuration not to return its key-value cache."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # type: ignore[union-attr]  # it has the attribute
