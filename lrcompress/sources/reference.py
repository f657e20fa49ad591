"""What a loaded model is, and the few words from which its architecture can be rebuilt."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from torch import nn

from lrcompress.errors import ModelError
from lrcompress.profiling.made_up import InputRecord
from lrcompress.sources.paths import expanded


@dataclass(frozen=True)
class ModelReference:
    """Where a model came from. With the run folder's companions it rebuilds the empty module."""

    kind: Literal["huggingface", "factory", "run"]
    text: str  # as the user wrote it
    details: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def place(self) -> str:
        """As the user wrote it, if that is here; else where its folder lay then."""
        here = expanded(self.text, ModelError).exists()
        return self.text if here else self.details.get("folder", self.text)


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
