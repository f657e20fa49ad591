"""Run networks without fused kernels, compiled code or backward hooks.

A fused kernel reads the weights of layers that it never calls, and nn.TransformerEncoder feeds it
nested tensors, which no other code accepts. Hooks and dispatch modes do not see compiled code. The
results are the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from functools import wraps
from types import MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

_P = ParamSpec("_P")
_R = TypeVar("_R")


class UnnestedEncoder(nn.TransformerEncoder):
    """nn.TransformerEncoder without nested tensors; its output in evaluation mode is the same.

    In evaluation mode torch drops padding from a batch whose masks are aligned to the left, and
    sets the padded positions to zero before the last norm. So does this class.
    """

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,  # noqa: FBT001  # torch's signature
    ) -> Tensor:
        output = src
        for layer in self.layers:
            output = layer(
                output,
                src_mask=mask,
                src_key_padding_mask=src_key_padding_mask,
                is_causal=bool(is_causal) and mask is not None,
            )
        nests = not self.layers[0].training and src.dim() == 3 and mask is None
        if nests and src_key_padding_mask is not None:
            padded = src_key_padding_mask != 0  # (N, S)
            if getattr(self, "mask_check", True):
                gaps = padded[:, :-1] & ~padded[:, 1:]  # a token after padding
                padded = padded & (gaps.to(torch.float32).sum() == 0)
            output = output.masked_fill(padded[..., None], 0.0)
        return output if self.norm is None else self.norm(output)


def nests_tensors(module: nn.Module) -> bool:
    """Whether the module is an nn.TransformerEncoder that may use nested tensors."""
    if type(module).forward is not nn.TransformerEncoder.forward or not len(module.layers):  # type: ignore[arg-type]  # a ModuleList
        return False
    own = getattr(vars(module).get("forward"), "__func__", None)
    replaced = "forward" in vars(module) and own is not UnnestedEncoder.forward
    return bool(getattr(module, "use_nested_tensor", False)) and not replaced


def without_nesting_(encoder: nn.Module) -> None:
    """Change the module's class to an `UnnestedEncoder`; hooks and names stay."""
    kind = type(encoder)
    plain = kind is nn.TransformerEncoder
    encoder.__class__ = (
        UnnestedEncoder if plain else type(kind.__name__, (UnnestedEncoder, kind), {})
    )


def with_nesting_(encoder: nn.Module) -> None:
    """Undo `without_nesting_`."""
    encoder.__class__ = type(encoder).__bases__[-1]


@contextmanager
def unfused(*modules: nn.Module, compiled: bool = False) -> Iterator[None]:
    """Context without torch's attention fast path and without nested tensors in encoders.

    Backward hooks do not run either: they may change the gradients by which layers are weighted.
    compiled: whether code compiled with torch.compile may run compiled, which a tracer needs.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    encoders = {
        part
        for module in modules
        for part in module.modules()
        if nests_tensors(part) and "forward" not in vars(part)
    }
    with ExitStack() as stack:
        if not compiled and "torch._dynamo" in sys.modules:  # importing it takes a second
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        torch.backends.mha.set_fastpath_enabled(False)
        for encoder in encoders:
            encoder.forward = MethodType(UnnestedEncoder.forward, encoder)
        hooks = [(table, dict(table)) for table in _backward_hooks(modules)]
        for table, _ in hooks:
            table.clear()  # in place, because a layer and its replacement share it
        try:
            yield
        finally:
            for table, held in hooks:
                table.update(held)
            torch.backends.mha.set_fastpath_enabled(before)
            for encoder in encoders:
                vars(encoder).pop("forward", None)


def _backward_hooks(modules: Iterable[nn.Module]) -> list[dict[int, Any]]:
    parts = {part for module in modules for part in module.modules()}
    tables = (table for p in parts for table in (p._backward_hooks, p._backward_pre_hooks))
    return list({id(table): table for table in tables if table}.values())


def runs_unfused(*, compiled: bool = False) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Decorator that runs a function with the modules among its arguments `unfused`."""

    def decorated(verb: Callable[_P, _R]) -> Callable[_P, _R]:
        @wraps(verb)
        def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
            given = (*args, *kwargs.values())
            modules = [value for value in given if isinstance(value, nn.Module)]
            with unfused(*modules, compiled=compiled):
                return verb(*args, **kwargs)

        return run

    return decorated
