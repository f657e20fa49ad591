"""The weights of a network that are stored in number formats, for its graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from lrcompress.export.precision import plain_copy, widened_copy
from lrcompress.graph.quantised import (
    StorageOptions,
    StorageResult,
    check_provider,
    needed_opset,
    store_weights_,
)
from lrcompress.network.other_weights import others_format
from lrcompress.structures.stored_codes import StoredWeight, stored_weights


@dataclass(frozen=True, eq=False)
class WeightStorage:
    """weights: by every name of their parameter; a tied one has several.

    others: the format of weights that no layer holds.
    """

    weights: Mapping[str, StoredWeight]
    others: str = "fp32"

    @classmethod
    def of(cls, module: nn.Module, provider: str) -> WeightStorage:
        """Raises ExportError if the provider has no kernel for one of the formats."""
        stored = {weight.name: weight for weight in stored_weights(widened_copy(module))}
        check_provider(stored.values(), provider)
        named = dict(plain_copy(module).named_parameters(remove_duplicate=False))
        by_id = {id(named[name]): weight for name, weight in stored.items()}
        return cls(
            {name: by_id[id(p)] for name, p in named.items() if id(p) in by_id},
            others_format(module),
        )

    def opset(self, requested: int) -> int:
        """Return the requested opset, or the first one that has the formats."""
        return max(requested, needed_opset(self.weights.values()))

    def notes(self, requested: int) -> tuple[str, ...]:
        opset = self.opset(requested)
        if opset == requested:
            return ()
        return (f"opset {opset}, not {requested}: the first one with the weights' formats",)

    def store_(self, model: Any, options: StorageOptions) -> StorageResult:
        """Let the graph read the weights as they are stored. It must hold them as plain floats."""
        return store_weights_(model, self.weights, replace(options, others=self.others))
