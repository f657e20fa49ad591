"""Gradients through networks that change in place a tensor that their gradient needs.

Networks that are run but never trained may do that: x += layer(x), sigmoid(x).mul_(2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

_T = TypeVar("_T")


def saved_copies(*, needed: bool = True) -> AbstractContextManager[object]:
    """Context in which a tensor that a gradient needs is copied before it is changed in place.

    It costs time at every operator, so use it only where it is needed.
    """
    return allow_mutation_on_saved_tensors() if needed else nullcontext()


def with_copies_if_needed(run: Callable[[], _T]) -> _T:
    """Return the result of `run`; run it again with `saved_copies` where a gradient needs them."""
    try:
        return run()
    except RuntimeError as cause:
        if not is_changed_in_place(cause):
            raise
    with saved_copies():
        return run()


def is_changed_in_place(cause: RuntimeError) -> bool:
    """Whether an autograd error says that a tensor it needs was changed in place."""
    return "inplace operation" in str(cause)


def changes_in_place(layers: Iterable[nn.Module], run: Callable[[], Tensor]) -> bool:
    """Whether gradients of `run`'s output by the outputs of `layers` need `saved_copies`."""

    def begin(layer: nn.Module, args: object, output: Tensor) -> Tensor:
        begun = output.requires_grad or not torch.is_grad_enabled()
        return output if begun else output.detach().requires_grad_().clone()

    with ExitStack() as hooks, torch.enable_grad():
        for layer in set(layers):
            hooks.enter_context(layer.register_forward_hook(begin, prepend=True))
        try:
            output = run()
            if output.requires_grad:
                torch.autograd.backward(output.sum())
        except RuntimeError as cause:
            return is_changed_in_place(cause)
    return False
