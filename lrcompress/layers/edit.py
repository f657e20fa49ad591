"""Replacing a submodule, whose hooks the replacement shares; finding values that are not finite."""

from __future__ import annotations

import torch
from torch import nn

_CHECKED_AT_ONCE = 2**24  # values; the check allocates temporary tensors
_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook",
)  # fmt: skip


def replace_(module: nn.Module, name: str, replacement: nn.Module) -> None:
    """Put `replacement` at every place where the submodule `name` is registered.

    ``named_children`` skips duplicates within one parent, so ``parent._modules`` is searched.
    """
    target = module.get_submodule(name)
    for parent in list(module.modules()):
        for attribute, child in list(parent._modules.items()):
            if child is target:
                parent._modules[attribute] = replacement


def has_hooks(layer: nn.Module) -> bool:
    """Whether forward hooks or forward pre-hooks are registered on the layer."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def share_hooks_(layer: nn.Module, replacement: nn.Module) -> nn.Module:
    """Make the replacement run the layer's hooks, and return the replacement.

    The hooks are shared, not copied: removing a hook by its handle removes it from both.
    """
    for table in _HOOKS:
        setattr(replacement, table, getattr(layer, table))
    return replacement


@torch.no_grad()
def first_nonfinite(module: nn.Module) -> str | None:
    """Name of the first parameter that holds NaN or infinity, or buffer that holds NaN, or None.

    Infinities in buffers are allowed, as in attention masks.
    """
    for name, parameter in module.named_parameters():
        parts = torch.split(parameter.flatten(), _CHECKED_AT_ONCE)
        if parameter.is_floating_point() and not all(bool(torch.isfinite(p).all()) for p in parts):
            return name
    for name, buffer in module.named_buffers():
        if buffer.is_floating_point() and bool(torch.isnan(buffer).any()):
            return name
    return None
