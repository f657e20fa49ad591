"""The result of a check, and the subject and the options of the checks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from torch import nn

from lrcompress import messages
from lrcompress.export.parity_inputs import Case
from lrcompress.export.precision import TORCH_DTYPES
from lrcompress.export.session import ProviderName
from lrcompress.graph.expanded import ReadWeight, expand_
from lrcompress.graph.rewrites.name_weights import parameter_name
from lrcompress.graph.stored_constants import read_graph
from lrcompress.network.batches import Batch
from lrcompress.structures.stored_codes import StoredWeight

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
    stored: tuple[StoredWeight, ...] = ()  # the module's weights in number formats

    @property
    def reference(self) -> tuple[nn.Module, Batch]:
        """The network and its example; for checks that run only if there is a network."""
        assert self.module is not None
        assert self.batch is not None
        return self.module, self.batch

    def read_expanded(self) -> Any:
        """Return the graph with plain float weights as an onnx_ir.Model; see graph/expanded."""
        return self._expand()[0]

    @cached_property
    def _expanded(self) -> tuple[Any, tuple[ReadWeight, ...]]:
        return self._expand()

    def _expand(self) -> tuple[Any, tuple[ReadWeight, ...]]:
        model = read_graph(self.graph, self.path.parent)
        return model, expand_(model)

    @property
    def expanded(self) -> Any:
        """As `read_expanded`, but one model for all who only read it."""
        return self._expanded[0]

    @property
    def read_weights(self) -> tuple[ReadWeight, ...]:
        """The weights that nodes of the graph read in codes."""
        return self._expanded[1]

    @property
    def float_sizes(self) -> dict[str, int]:
        """The number of values of each float initializer of `expanded`.

        A weight whose codes several nodes read is expanded several times, and counts once.
        """
        model, read = self._expanded
        in_codes = {one.name for one in read}
        sizes: dict[str, int] = {}
        seen: set[str] = set()
        for name, value in model.graph.initializers.items():
            again = name in in_codes and parameter_name(name) in seen
            if value.dtype is not None and value.dtype.is_floating_point() and not again:
                sizes[name] = prod(map(int, value.shape))
            if name in in_codes:
                seen.add(parameter_name(name))
        return sizes

    @property
    def dtype(self) -> torch.dtype:
        return TORCH_DTYPES[self.precision]

    @property
    def metadata(self) -> dict[str, str]:
        """The metadata entries of the file."""
        return {entry.key: entry.value for entry in self.graph.metadata_props}
