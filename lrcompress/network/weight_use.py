"""Find modules that read a layer's weight outside the layer's own forward, in one forward pass."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)

from lrcompress.layers import layer_kind
from lrcompress.network.operators import OperatorWatch
from lrcompress.network.outputs import tensors_of

# Operators that read only a tensor's dtype, device or shape
_HARMLESS = {"is_same_size", "_has_same_storage_numel", "is_pinned"}


@dataclass(eq=False)
class WeightUse:
    """Class name of the module whose forward (or hook) reads a layer's parameters, by layer."""

    read_by: dict[nn.Module, str] = field(default_factory=dict)

    def note(self, layers: Iterable[nn.Module], reader: str) -> None:
        for layer in layers:
            self.read_by.setdefault(layer, reader)

    def reason(self, layer: nn.Module) -> str:
        """Why the layer must not be replaced; "" if no other module reads its weight."""
        reader = self.read_by.get(layer)
        if reader is None:
            return ""
        return f"{reader} reads its weight directly, besides or instead of calling it"


@contextmanager
def watch_weights(module: nn.Module) -> Iterator[WeightUse]:
    """Context that fills a WeightUse while `module` runs.

    Every operator counts that reads values of a parameter, or of a view, an alias or a buffer that
    shares its memory. Hooks of standard layers are not part of their forward: a replacement keeps
    the hooks but does not have such a weight.
    """
    found = WeightUse()
    running: list[nn.Module] = []
    known = set(module.modules())
    strict = {layer for layer in known if layer_kind(layer) is not None}
    others, owners = known - strict, _owners(module)

    def note(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: object) -> None:
        reader = type(running[-1]).__name__ if running else "the caller"
        for tensor in _read(func, args, kwargs, result):
            layers = _owning(tensor, owners)
            if not any(layer in running for layer in layers):
                found.note(layers, reader)

    def enter(layer: nn.Module, args: object) -> None:
        running.append(layer)

    def leave(layer: nn.Module, args: object, result: object) -> None:
        running.pop()

    def enter_other(layer: nn.Module, args: object) -> None:
        if layer in others:
            running.append(layer)

    def leave_other(layer: nn.Module, args: object, result: object) -> None:
        if layer in others:
            running.pop()

    with ExitStack() as hooks:
        hooks.enter_context(register_module_forward_pre_hook(enter_other))
        hooks.enter_context(register_module_forward_hook(leave_other, always_call=True))
        for layer in strict:
            hooks.enter_context(layer.register_forward_pre_hook(enter))
            hook = layer.register_forward_hook(leave, prepend=True, always_call=True)
            hooks.enter_context(hook)
        with OperatorWatch(note):
            yield found


def note_returned(module: nn.Module, raw: object, found: WeightUse) -> None:
    """Add to `found` the layers whose weight, or a view of it, is an output of the network."""
    owners = _owners(module)
    for tensor in tensors_of(raw):
        found.note(_owning(tensor, owners), type(module).__name__)


# Byte ranges of parameters and the modules that hold them, by the address of their storage
_Owners = Mapping[int, Sequence[tuple[int, int, nn.Module]]]


def _read(
    func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], result: object
) -> list[Tensor]:
    """Return the tensors whose values an operator reads."""
    schema = getattr(func, "_schema", None)
    name = str(schema or func).partition("(")[0].partition("::")[2].partition(".")[0]
    if name in _HARMLESS or name.endswith("_like") or name.startswith("new_"):
        return []
    changes = bool(getattr(schema, "is_mutable", False))
    # Making a view is not a use; an operator that reads the view has the same memory
    made = set() if changes else {_storage(x) for x in tensors_of(result)}
    return [x for x in tensors_of((*args, *kwargs.values())) if _storage(x) not in made]


def _owning(tensor: Tensor, owners: _Owners) -> list[nn.Module]:
    start, stop = _extent(tensor)
    ranges = owners.get(_storage(tensor), ())
    return [layer for first, end, layer in ranges if start < end and first < stop]


def _owners(module: nn.Module) -> _Owners:
    owners: dict[int, list[tuple[int, int, nn.Module]]] = defaultdict(list)
    for child in module.modules():
        held = [*child.parameters(recurse=False)]
        if isinstance(child, nn.MultiheadAttention):  # it reads out_proj's weights itself
            held += child.out_proj.parameters(recurse=False)
        for parameter in held:
            if _storage(parameter):
                owners[_storage(parameter)].append((*_extent(parameter), child))
    return owners


def _storage(tensor: Tensor) -> int:
    """Address of the tensor's memory; 0 for tensors without a storage of their own."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # inside a function transform
        return 0


def _extent(tensor: Tensor) -> tuple[int, int]:
    """Byte range of the tensor in its storage: (start, stop)."""
    if tensor.layout is not torch.strided or tensor.is_nested or not tensor.numel():
        return 0, 0
    start = int(tensor.storage_offset())
    last = sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    return start * tensor.element_size(), (start + last + 1) * tensor.element_size()
