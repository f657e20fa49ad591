"""The hooks of a layer, and sharing them with its replacement."""

from __future__ import annotations

from torch import nn

_HOOKS = (
    "_forward_pre_hooks", "_forward_pre_hooks_with_kwargs",
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called",
    "_backward_pre_hooks", "_backward_hooks", "_is_full_backward_hook",
)  # fmt: skip


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
