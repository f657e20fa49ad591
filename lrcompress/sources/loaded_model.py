"""What a loaded model is, and the few words from which its architecture can be rebuilt."""

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
    """A module in eval mode whose parameters ask for no gradient."""

    module: nn.Module
    reference: ModelReference
    companions: tuple[Path, ...] = ()  # config, tokenizer, pooling: carried into a run folder
    folder: Path | None = None  # where the tokenizer or image processor lies
    own_code: bool = False  # whether Python code in that folder may run
    pooling: Literal["mean", "cls"] | None = None  # how a sentence encoder makes one vector
    inputs: Mapping[str, InputRecord] = field(default_factory=dict)  # of the run that wrote it
    warnings: tuple[str, ...] = ()  # what the user should know of where it came from
