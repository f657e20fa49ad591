"""Observes one forward pass: the arguments of layers, and the products that they compute."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from lrcompress.network.weight_use import WeightUse, note_returned, watch_weights

CALLS_KEPT = 4  # per layer


@dataclass(frozen=True, eq=False)
class Product:
    """A standard operation that a layer called; `weight` has the standard layer's layout."""

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
    """The arguments of a call. Tensors are copied; the same tensor twice is one copy."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]


@dataclass(frozen=True, eq=False)
class Observation:
    calls: Mapping[nn.Module, Sequence[Call]]
    use: WeightUse


def observe(
    module: nn.Module, candidates: Collection[nn.Module], run: Callable[[], object]
) -> Observation:
    """Observe `run`, a forward pass of `module`, and keep the inputs of the candidates."""
    calls: dict[nn.Module, list[Call]] = defaultdict(list)

    def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if len(calls[layer]) < CALLS_KEPT:
            calls[layer].append(_copied_call(args, kwargs))

    with ExitStack() as hooks, torch.no_grad():
        for layer in candidates:
            hooks.enter_context(layer.register_forward_pre_hook(keep, with_kwargs=True))
        with watch_weights(module) as use:
            raw = run()
    note_returned(module, raw, use)
    return Observation(calls, use)


def products_of(run: Callable[[], object]) -> list[Product]:
    """Return the standard operations that `run` computes, in their order."""
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
        run()
    return seen


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


def _copied_call(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Call:
    copies: dict[int, Tensor] = {}

    def copied(value: Any) -> Any:
        if isinstance(value, Tensor):
            return copies.setdefault(id(value), value.detach().clone())
        return value

    return Call(tuple(map(copied, args)), {name: copied(value) for name, value in kwargs.items()})
