"""A loaded model, with the reference from which its architecture can be rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from lrcompress.errors import ModelError
from lrcompress.formats.run_json import ModelReference
from lrcompress.layers import first_nonfinite
from lrcompress.network.made_up_inputs import InputRecord

AnyModule = TypeVar("AnyModule", bound=nn.Module)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A module in eval mode whose parameters have requires_grad off."""

    module: nn.Module
    reference: ModelReference
    companions: tuple[Path, ...] = ()  # config, tokenizer, pooling: copied into a run folder
    folder: Path | None = None  # the folder of the tokenizer or image processor
    own_code: bool = False  # whether Python code in that folder may run
    pooling: Literal["mean", "cls"] | None = None  # how a sentence encoder pools its outputs
    inputs: Mapping[str, InputRecord] = field(default_factory=dict)  # recorded in a run folder
    warnings: tuple[str, ...] = ()  # what the user should know about the model's source


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
    stored = any(parametrize.is_parametrized(part) for part in module.modules())
    if next(module.parameters(), None) is None and not stored:
        raise ModelError(f"{where}: the model has no weights; there is nothing to compress")
    name = first_nonfinite(module)
    if name is not None:
        raise ModelError(
            f"{where}: {name} holds NaN or infinity; take a checkpoint from before it diverged"
        )
    module.eval()
    return module.requires_grad_(False)
