"""Gradients through networks that change in place what their gradient needs."""

from __future__ import annotations

from contextlib import AbstractContextManager

from torch.autograd.graph import allow_mutation_on_saved_tensors


def saved_copies() -> AbstractContextManager[object]:
    """Meanwhile a tensor that a gradient needs is copied before it is changed in place.

    Networks that are run and never trained do that: x += layer(x), sigmoid(x).mul_(2).
    """
    return allow_mutation_on_saved_tensors()


def is_changed_in_place(cause: RuntimeError) -> bool:
    """Whether an error of autograd says that a tensor it needs was changed in place."""
    return "inplace operation" in str(cause)
