"""The last step of loading a model: prepare and check the module for profiling."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import torch
from torch import nn

from lrcompress.errors import ModelError
from lrcompress.layers import first_nonfinite

AnyModule = TypeVar("AnyModule", bound=nn.Module)


def ready_(module: AnyModule, where: Path | str) -> AnyModule:
    """Put the module in eval mode without gradients, and check its weights.

    Raises:
        ModelError: a weight is NaN or infinite, there are no weights, or a part is TorchScript.
    """
    for part, child in module.named_modules():
        if isinstance(child, torch.jit.ScriptModule):
            raise ModelError(
                f"{where}: {part or 'the model'} is TorchScript, whose layers cannot be replaced "
                "and which cannot be traced; give the nn.Module that it was made from"
            )
    if next(module.parameters(), None) is None:
        raise ModelError(f"{where}: the model has no weights; there is nothing to compress")
    name = first_nonfinite(module)
    if name is not None:
        raise ModelError(
            f"{where}: {name} holds NaN or infinity; take a checkpoint from before it diverged"
        )
    module.eval()
    return module.requires_grad_(False)
