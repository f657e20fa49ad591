"""What a check says, and what it is made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import onnx
from torch import nn

from lrcompress.export.session import ProviderName
from lrcompress.messages import label
from lrcompress.network.batches import Batch

Kind = Literal["graph", "numeric", "placement", "budget"]
_NAMED = 5  # names listed in a message; the rest are counted


@dataclass(frozen=True)
class Check:
    """passed is None where the check could not run; detail then says why."""

    name: str
    kind: Kind
    passed: bool | None
    detail: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BudgetFacts:
    """What the file may hold at most; None where nothing was promised."""

    params: int | None = None
    bytes: int | None = None
    why_none: str = "no budget was given"


NO_BUDGET = BudgetFacts()


@dataclass(frozen=True, eq=False)
class Subject:
    """A file and what it is held against."""

    path: Path
    graph: onnx.ModelProto  # without external data
    precision: str
    provider: ProviderName
    module: nn.Module | None  # in evaluation mode, float32, on the CPU
    batch: Batch | None

    @property
    def metadata(self) -> dict[str, str]:
        """What the file tells of itself."""
        return {entry.key: entry.value for entry in self.graph.metadata_props}


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(label, names[:_NAMED])) + more
