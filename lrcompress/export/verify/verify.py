"""Verify an ONNX file: well-formed, equal to its network, still factorised, placed, in budget.

Every check reports its findings in numbers. A check that could not run says why and counts as
neither passed nor failed.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from lrcompress.errors import VerifyError
from lrcompress.export.parity_inputs import Case
from lrcompress.export.precision import cast_copy, widened_copy
from lrcompress.export.session import ProviderName, file_bytes
from lrcompress.export.verify.factor_check import factors_check
from lrcompress.export.verify.format_check import formats_check
from lrcompress.export.verify.graph_checks import (
    budget,
    kernels,
    placed,
    precision_of,
    readable,
    well_formed,
)
from lrcompress.export.verify.optimised_graph import OptimisedGraph
from lrcompress.export.verify.parity_check import parity
from lrcompress.export.verify.result import BudgetFacts, Check, Kind, Subject, VerifyOptions
from lrcompress.export.verify.value_check import values_check
from lrcompress.network.batches import Batch
from lrcompress.network.unfused import runs_unfused
from lrcompress.structures.stored_codes import stored_weights

__all__ = ["BudgetFacts", "Case", "Check", "VerifyOptions", "VerifyReport", "verify"]

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class VerifyReport:
    path: str
    precision: str
    provider: ProviderName
    checks: tuple[Check, ...]
    schema_version: int = SCHEMA_VERSION

    @property
    def ok(self) -> bool:
        return not self.failed

    @property
    def failed(self) -> tuple[Check, ...]:
        return tuple(check for check in self.checks if check.passed is False)

    def __getitem__(self, name: str) -> Check:
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(name)

    def to_json(self) -> dict[str, Any]:
        return asdict(self) | {"ok": self.ok}


@runs_unfused()
def verify(
    path: Path,
    module: nn.Module | None = None,
    batch: Batch | None = None,
    options: VerifyOptions | None = None,
) -> VerifyReport:
    """Check the file at `path` against the network that it should compute.

    The file may come from any exporter. Without a module only the file itself is checked.

    Raises:
        ModelError: the file, or its external data, cannot be read.
        VerifyError: the network fails on the batch, or a batch is missing.
    """
    options = options or VerifyOptions()
    path = Path(path)
    graph = readable(path)
    file_bytes(path)  # reports missing external data before other code fails on it
    if module is not None and not batch:
        raise VerifyError("a reference network needs example inputs to run on; give data")
    reference = cast_copy(module, "fp32") if module is not None else None
    if batch is not None:  # the reference computes in float32
        batch = {n: t.float() if t.is_floating_point() else t for n, t in batch.items()}
    stored = () if module is None else tuple(stored_weights(widened_copy(module)))
    precision = precision_of(graph)
    subject = Subject(path, graph, precision, options.provider, reference, batch, stored)
    checks = [well_formed(subject)]
    if checks[0].passed:
        checks += [
            *_equality(subject, options),
            kernels(subject),
            placed(subject),
            budget(subject, options.budget),
        ]
    return VerifyReport(str(path), subject.precision, options.provider, tuple(checks))


def _equality(subject: Subject, options: VerifyOptions) -> tuple[Check, ...]:
    """Run the checks that need the network."""
    if subject.module is None:
        names: dict[str, Kind] = {"parity": "numeric", "values": "numeric", "factors": "graph"}
        reason = "no reference network was given"
        return tuple(Check(name, kind, None, reason) for name, kind in names.items())
    optimised = OptimisedGraph(subject)
    return (
        *parity(subject, options),
        values_check(subject),
        factors_check(subject, optimised),
        *formats_check(subject, optimised),
    )
