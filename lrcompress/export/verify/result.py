"""The result of a check, and the subject of the checks."""

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
    """The result of one check. passed is None if it could not decide; detail then says why."""

    name: str
    kind: Kind
    passed: bool | None
    detail: str
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BudgetFacts:
    """The limits on the file's parameters and bytes; None: no limit."""

    params: int | None = None
    bytes: int | None = None
    why_none: str = "no budget was given"


NO_BUDGET = BudgetFacts()


@dataclass(frozen=True, eq=False)
class Subject:
    """A file and the network that it is compared with."""

    path: Path
    graph: onnx.ModelProto  # without external data
    precision: str
    provider: ProviderName
    module: nn.Module | None  # in evaluation mode, float32, on the CPU
    batch: Batch | None

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata entries of the file."""
        return {entry.key: entry.value for entry in self.graph.metadata_props}


def listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(map(label, names[:_NAMED])) + more
