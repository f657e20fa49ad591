"""Weights saved from a wrapped model: DataParallel and torch.compile put their names before all."""

from __future__ import annotations

from torch import Tensor, nn

PREFIXES = ("module.", "_orig_mod.")


def unwrapped(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """The tensors under the names that they had in the model that was wrapped.

    They stay as they are where the module is wrapped itself, or has a child of such a name.
    """
    children = {f"{name}." for name, _ in module.named_children()}
    for _ in range(len(PREFIXES)):  # compiled and then spread over devices, or the other way round
        for prefix in set(PREFIXES) - children:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
