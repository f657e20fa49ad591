"""Names of weights saved from a wrapped model: DataParallel and torch.compile add a prefix."""

from __future__ import annotations

from torch import Tensor, nn

PREFIXES = ("module.", "_orig_mod.")


def unwrapped(state: dict[str, Tensor], module: nn.Module) -> dict[str, Tensor]:
    """Return the tensors under the names that they had in the model before it was wrapped.

    The names are kept if the module is wrapped itself, or has a child of such a name.
    """
    children = {f"{name}." for name, _ in module.named_children()}
    for _ in range(len(PREFIXES)):  # compiled, then DataParallel, or the other way round
        for prefix in set(PREFIXES) - children:
            if state and all(name.startswith(prefix) for name in state):
                state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state
