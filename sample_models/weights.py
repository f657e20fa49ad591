"""Writing and reading the committed weights."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn


def save_weights(module: nn.Module, path: Path, dtype: torch.dtype) -> None:
    """Write the state dict in `dtype` and round the module's own weights to what was written.

    Tied tensors are written under both names, so that a strict load needs no special case.
    """
    state = {
        name: tensor.detach().to(dtype) if tensor.is_floating_point() else tensor.detach()
        for name, tensor in module.state_dict().items()
    }
    scratch = path.with_name(f".{path.name}.part")
    save_file({name: tensor.clone().contiguous() for name, tensor in state.items()}, scratch)
    scratch.replace(path)
    module.load_state_dict(state)


def load_weights(module: nn.Module, path: Path) -> nn.Module:
    """Strictly load `path` into the module, in the module's own dtype; returns it in eval mode."""
    module.load_state_dict(load_file(path), strict=True)
    return module.eval()
