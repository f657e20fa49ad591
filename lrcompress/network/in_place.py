"""Gradients through networks that change in place what their gradient needs.

Networks that are run and never trained do that: x += layer(x), sigmoid(x).mul_(2).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import allow_mutation_on_saved_tensors

_T = TypeVar("_T")


def saved_copies(*, needed: bool = True) -> AbstractContextManager[object]:
    """Meanwhile a tensor that a gradient needs is copied before it is changed in place.

    It takes time at every operator, so it is only used where it is needed.
    """
    return allow_mutation_on_saved_tensors() if needed else nullcontext()


def with_copies_if_needed(run: Callable[[], _T]) -> _T:
    """What `run` gives, run again with `saved_copies` where a gradient fails for want of them."""
    try:
        return run()
    except RuntimeError as cause:
        if not is_changed_in_place(cause):
            raise
    with saved_copies():
        return run()


def is_changed_in_place(cause: RuntimeError) -> bool:
    """Whether an error of autograd says that a tensor it needs was changed in place."""
    return "inplace operation" in str(cause)


def changes_in_place(layers: Iterable[nn.Module], run: Callable[[], Tensor]) -> bool:
    """Whether gradients of an output by those of `layers` need `saved_copies`."""

    def begin(layer: nn.Module, args: object, output: Tensor) -> Tensor:
        begun = output.requires_grad or not torch.is_grad_enabled()
        return output if begun else output.detach().requires_grad_().clone()

    handles = [layer.register_forward_hook(begin, prepend=True) for layer in set(layers)]
    try:
        with torch.enable_grad():
            output = run()
            if output.requires_grad:
                torch.autograd.backward(output.sum())
    except RuntimeError as cause:
        return is_changed_in_place(cause)
    finally:
        for handle in handles:
            handle.remove()
    return False
