"""Wrap a network for export: positional tensor inputs, named tensor outputs, one inner dtype."""

from __future__ import annotations

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lrcompress.errors import ExportError
from lrcompress.graph.names import unused_name
from lrcompress.messages import one_line
from lrcompress.network.batches import Batch

CACHES = ("past_key_values", "mems")  # state of a decoder between calls; not in the graph

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def named_outputs(raw: object) -> dict[str, Tensor]:
    """Return the tensors in a network's output by name.

    Mappings and dataclasses keep their keys, tuples count from ``output_0``, a single tensor is
    ``output``. Names of nested outputs are joined with ``_``; duplicates are numbered. Caches are
    dropped.
    """
    if isinstance(raw, Tensor):
        return {"output": raw}
    found: dict[str, Tensor] = {}
    for name, tensor in _flatten(raw, "output" if isinstance(raw, tuple | list) else ""):
        found[unused_name(name or "output", found)] = tensor
    return found


def _flatten(raw: object, prefix: str) -> Iterable[tuple[str, Tensor]]:
    if isinstance(raw, Tensor):
        yield prefix, raw
        return
    for key, value in (parts_of(raw) or {}).items():
        if key not in CACHES:
            yield from _flatten(value, f"{prefix}_{key}" if prefix else str(key))


def parts_of(raw: object) -> Mapping[object, object] | None:
    """Return the items of a container by key, field or index; None if it is not a container."""
    if isinstance(raw, Mapping):
        return raw
    if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
        return {field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}
    if isinstance(raw, tuple | list):
        return dict(enumerate(raw))
    return None


class NamedForward(nn.Module):
    """Calls `module` with named tensors and returns its named outputs as a tuple.

    The module computes in `dtype`. Floating-point inputs and outputs are float32 with `keep_io`,
    otherwise `dtype`. `module` should be a copy: its experts are modified to be traceable.
    """

    def __init__(
        self, module: nn.Module, inputs: Sequence[str], dtype: torch.dtype, *, keep_io: bool
    ) -> None:
        super().__init__()
        self.module = batched_experts_(module)
        self.inputs = tuple(inputs)
        self.dtype = dtype
        self.io_dtype = torch.float32 if keep_io else dtype

    def cast_inputs(self, batch: Batch) -> Batch:
        """Return the batch with floating-point tensors in the dtype of the inputs."""
        return {name: _to(batch[name], self.io_dtype) for name in self.inputs}

    def outputs(self, *values: Tensor) -> dict[str, Tensor]:
        arguments = {
            name: _to(value, self.dtype) for name, value in zip(self.inputs, values, strict=True)
        }
        named = named_outputs(self.module(**copied(arguments)))
        return {name: _to(value, self.io_dtype) for name, value in named.items()}

    def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
        """Return copies of the outputs.

        An input that is passed through, or a tensor that is returned twice, would otherwise be a
        single value of the graph, with a single name.
        """
        return tuple(value.clone() for value in self.outputs(*values).values())


def _to(value: Tensor, dtype: torch.dtype) -> Tensor:
    return value.to(dtype) if value.is_floating_point() else value


def copied(batch: Batch) -> Batch:
    """Return a copy of the batch, for a network that may change its inputs in place."""
    return {name: value.clone() for name, value in batch.items()}


def example_refused(network: str, batch: Batch, cause: Exception) -> ExportError:
    """Return the error for a network that fails on an example batch."""
    shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in batch.items())
    return ExportError(
        f"{network} fails on inputs {shapes}: {one_line(cause, 300)}; "
        "give an example batch that it accepts"
    )


def check_arguments(module: nn.Module, batch: Batch) -> None:
    """Raise ExportError if the module's forward cannot be called with these named tensors."""
    signature = inspect.signature(module.forward)
    try:
        signature.bind(**batch)
    except TypeError as error:
        takes = ", ".join(signature.parameters) or "nothing"
        raise ExportError(
            f"{type(module).__name__}.forward: {error} (given: {', '.join(batch) or 'nothing'}; "
            f"it takes: {takes}); name the data's tensors as the arguments of forward"
        ) from None


def copy_structure(module: AnyModule, tensor: Callable[[str, Tensor], Tensor]) -> AnyModule:
    """Return a copy whose parameters and buffers are `tensor(name, original)`; ties are kept.

    A tensor that `tensor` returns unchanged is shared, so the copy of a large model is small.

    Raises:
        ExportError: an attribute of the module cannot be copied.
    """
    memo: dict[int, Any] = {}
    for name, parameter in module.named_parameters():
        values = tensor(name, parameter.detach())
        memo[id(parameter)] = nn.Parameter(values, requires_grad=False)
    for name, buffer in module.named_buffers():
        memo[id(buffer)] = tensor(name, buffer)
    for part in module.modules():  # deepcopy refuses cached tensors that have a gradient history
        for value in vars(part).values():
            if isinstance(value, Tensor) and not value.is_leaf:
                memo[id(value)] = value.detach()
    try:
        return copy.deepcopy(module, memo)
    except Exception as error:  # a module's attributes may raise anything when copied
        raise ExportError(
            f"{type(module).__name__} cannot be copied for export ({error}); "
            "remove the attribute that refuses copy.deepcopy"
        ) from error


def batched_experts_(module: AnyModule) -> AnyModule:
    """Let transformers' mixtures of experts compute all tokens in one product.

    Their other implementations cannot be exported: an operator without an ONNX equivalent, and a
    loop over experts that depends on the values.
    """
    for part in module.modules():
        config = getattr(part, "config", None)
        if getattr(config, "_experts_implementation", None) is not None:
            config._experts_implementation = "batched_mm"  # type: ignore[union-attr]
    return module


def without_cache_(module: nn.Module) -> None:
    """Set use_cache to false in the configuration of every part."""
    for part in module.modules():
        config = getattr(part, "config", None)
        if getattr(config, "use_cache", False):
            config.use_cache = False  # type: ignore[union-attr]
