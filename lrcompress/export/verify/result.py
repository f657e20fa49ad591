"""The result of a check, and the subject and the options of the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import onnx
from torch import nn

from lrcompress import messages
from lrcompress.export.parity_inputs import Case
from lrcompress.export.session import ProviderName
from lrcompress.network.batches import Batch

Kind = Literal["graph", "numeric", "placement", "budget"]
NAMED = 5  # names listed in a message; the rest are counted
listed = partial(messages.listed, most=NAMED)


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


@dataclass(frozen=True)
class VerifyOptions:
    provider: ProviderName = "cpu"
    budget: BudgetFacts = NO_BUDGET
    shapes: tuple[Case, ...] | None = None  # None: various shapes around the example's own
    tolerance: float | None = None  # relative to the outputs; None: see export/verify/parity.py
    seed: int = 0


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
    def reference(self) -> tuple[nn.Module, Batch]:
        """The network and its example; for checks that run only if there is a network."""
        assert self.module is not None
        assert self.batch is not None
        return self.module, self.batch

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata entries of the file."""
        return {entry.key: entry.value for entry in self.graph.metadata_props}
