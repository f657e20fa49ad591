"""A loaded model, with the reference from which its architecture can be rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from lrcompress.formats.run_json import ModelReference
from lrcompress.network.made_up_inputs import InputRecord


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
