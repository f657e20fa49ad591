"""One forward pass, watched: which products a layer computes, and who reads whose weight."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.module import (
    register_module_forward_hook,
    register_module_forward_pre_hook,
)
from torch.overrides import TorchFunctionMode

CALLS_KEPT = 4  # of each layer

# Functions that take no more of a tensor than its dtype, device or shape
HARMLESS = {"type_as", "zeros_like", "ones_like", "empty_like", "full_like", "expand_as", "view_as"}


@dataclass(frozen=True, eq=False)
class Product:
    """A standard operation as a layer called it; `weight` is laid out as the standard layer's."""

    kind: Literal["linear", "embedding", "conv1d", "conv2d"]
    input: Tensor
    weight: Tensor
    bias: Tensor | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] | str = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    padding_idx: int | None = None
    plain: bool = True  # without side effects: a lookup that renormalises the table has one


@dataclass(frozen=True, eq=False)
class Call:
    """What a layer was called with; tensors are copies, and what was one tensor is one still."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(eq=False)
class Observation:
    calls: dict[nn.Module, list[Call]] = field(default_factory=lambda: defaultdict(list))
    read_by: dict[nn.Module, str] = field(default_factory=dict)  # layer -> class of the reader


class _Watch(TorchFunctionMode):
    """Notes who uses the memory of a parameter outside of the modules that own it."""

    def __init__(self, owners: Mapping[int, Collection[nn.Module]], found: Observation) -> None:
        super().__init__()
        self.owners, self.found = owners, found
        self.running: list[nn.Module] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Collection[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = getattr(func, "__name__", "")
        if name not in HARMLESS and not name.startswith("new_"):
            given = args[:1] if name == "to" else (*args, *(kwargs or {}).values())
            self._note(given, result)
        return result

    def _note(self, given: Sequence[Any], result: object) -> None:
        made = {_memory(tensor) for tensor in _tensors(result)}
        for memory in {_memory(tensor) for tensor in _tensors(given)}:
            owners = self.owners.get(memory, ())
            # A view is no use yet; whoever uses the view has the same memory
            if not owners or not made or memory in made:
                continue
            if not any(owner in self.running for owner in owners):
                reader = type(self.running[-1]).__name__ if self.running else "the caller"
                for owner in owners:
                    self.found.read_by[owner] = reader


def observe(
    module: nn.Module, candidates: Collection[nn.Module], run: Callable[[], object]
) -> Observation:
    """Watch `run`, a forward pass of `module`; inputs of the candidates are kept.

    torch's fused transformer kernels stand aside while somebody watches.
    """
    found = Observation()
    known = set(module.modules())
    watch = _Watch(_owners(module), found)

    def enter(layer: nn.Module, args: tuple[Any, ...]) -> None:
        if layer in known:
            watch.running.append(layer)

    def leave(layer: nn.Module, args: tuple[Any, ...], result: object) -> None:
        if layer in known:
            watch.running.pop()

    def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(found.calls[layer]) < CALLS_KEPT:
            copies: dict[int, Tensor] = {}
            found.calls[layer].append(_copied_call(args, kwargs, copies))

    handles = [
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),
        *(layer.register_forward_pre_hook(keep, with_kwargs=True) for layer in candidates),
    ]
    try:
        with torch.no_grad(), watch:
            run()
    finally:
        for handle in handles:
            handle.remove()
    return found


def products_of(run: Callable[[], object]) -> tuple[object, list[Product]]:
    """The result of `run`, and the standard operations in it."""
    seen: list[Product] = []

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self,
            func: Callable[..., Any],
            types: Collection[type],
            args: tuple[Any, ...] = (),
            kwargs: Mapping[str, Any] | None = None,
        ) -> Any:
            result = func(*args, **(kwargs or {}))
            product = _product(getattr(func, "__name__", ""), args, kwargs or {})
            if product is not None:
                seen.append(product)
            return result

    with torch.no_grad(), Watch():
        result = run()
    return result, seen


def _product(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Product | None:
    names = _SIGNATURES.get(name)
    if names is None or len(args) > len(names):
        return None
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    weight = given.get("weight")
    if not isinstance(given.get("input"), Tensor) or not isinstance(weight, Tensor):
        return None
    if name in ("conv1d", "conv2d"):
        return _convolution(name, given)
    if weight.dim() != 2:
        return None
    if name == "embedding":
        plain = not given.get("sparse") and given.get("max_norm") is None
        index = given.get("padding_idx")
        return Product("embedding", given["input"], weight, padding_idx=index, plain=plain)
    if name != "linear":
        weight = weight.mT
    if given.get("alpha", 1) != 1 or given.get("beta", 1) != 1:
        return None
    return Product("linear", given["input"], weight, given.get("bias"))


def _convolution(name: str, given: Mapping[str, Any]) -> Product:
    axes = int(name[4])
    padding = given.get("padding", 0)
    return Product(
        "conv1d" if axes == 1 else "conv2d",
        given["input"],
        given["weight"],
        given.get("bias"),
        stride=_each(given.get("stride", 1), axes),
        padding=padding if isinstance(padding, str) else _each(padding, axes),
        dilation=_each(given.get("dilation", 1), axes),
        groups=int(given.get("groups", 1)),
    )


_PRODUCT = ("input", "weight")
_CONVOLUTION = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_SIGNATURES: dict[str, tuple[str, ...]] = {
    "linear": ("input", "weight", "bias"),
    "conv1d": _CONVOLUTION,
    "conv2d": _CONVOLUTION,
    "embedding": (
        "input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse",
    ),
    "matmul": _PRODUCT,
    "__matmul__": _PRODUCT,
    "mm": _PRODUCT,
    "addmm": ("bias", "input", "weight"),
}  # fmt: skip


def _each(value: Any, axes: int) -> tuple[int, ...]:
    given = tuple(value) if isinstance(value, tuple | list) else (value,)
    return tuple(int(x) for x in (given * axes if len(given) == 1 else given))


def _owners(module: nn.Module) -> dict[int, list[nn.Module]]:
    """Memory of each parameter -> the modules that hold it."""
    owners: dict[int, list[nn.Module]] = defaultdict(list)
    for child in module.modules():
        for parameter in child.parameters(recurse=False):
            owners[_memory(parameter)].append(child)
        if isinstance(child, nn.MultiheadAttention):  # reads the weights of its projection itself
            for parameter in child.out_proj.parameters(recurse=False):
                owners[_memory(parameter)].append(child)
    owners.pop(0, None)
    return owners


def _memory(tensor: Tensor) -> int:
    """Where its values lie; 0 for tensors that have no place of their own."""
    if tensor.is_nested or tensor.layout is not torch.strided:
        return 0
    try:
        return tensor.untyped_storage().data_ptr()
    except (RuntimeError, NotImplementedError):  # inside a function transform
        return 0


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, tuple | list):
        for item in value:
            yield from _tensors(item)


def _copied_call(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], copies: dict[int, Tensor]
) -> Call:
    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return copies.setdefault(id(value), value.detach().clone())
        return value

    return Call(tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()})
