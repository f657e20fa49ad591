"""Which wrong copies of a file the checks find."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
from torch import Tensor, nn

from lrcompress.errors import LrcompressError
from lrcompress.export.precision import cast_copy
from lrcompress.export.verify.graph_checks import precision_of
from lrcompress.export.verify.result import Subject
from lrcompress.export.verify.value_check import values_check
from lrcompress.export.verify.verify import VerifyReport, verify

from .mutants import Mutant, noisy, one_row, scaled, tables, weights


def mutant_of(path: Path, mutant: Mutant, folder: Path) -> Path:
    model = ir.load(path)
    mutant[1](model)
    ir.save(model, folder / "mutant.onnx")
    return folder / "mutant.onnx"


def missed(
    path: Path, module: nn.Module, batch: dict[str, Tensor], made: Sequence[Mutant], folder: Path
) -> list[str]:
    """Mutants that pass every check."""
    found = []
    for mutant in made:
        try:
            report: VerifyReport | None = verify(mutant_of(path, mutant, folder), module, batch)
        except LrcompressError:
            report = None
        if report is not None and report.ok:
            found.append(mutant[0])
    return found


def missed_by_value(
    path: Path, module: nn.Module, batch: dict[str, Tensor], made: Sequence[Mutant]
) -> list[str]:
    """Mutants that the comparison by value alone lets pass."""
    reference = cast_copy(module, "fp32")
    found = []
    for mutant in made:
        model = ir.load(path)
        mutant[1](model)
        graph = ir.to_proto(model)
        subject = Subject(path, graph, precision_of(graph), "cpu", reference, batch)
        if values_check(subject).passed is not False:
            found.append(mutant[0])
    return found


def weight_mutants(path: Path, error: float, rows: int | None = None) -> list[Mutant]:
    """Every weight scaled and with noise, and rows of every table (all of them, or so many)."""
    model = ir.load(path)
    made = [make(name, error) for name in weights(model) for make in (scaled, noisy)]
    for table in tables(model):
        height = model.graph.initializers[table].const_value.shape[0]
        chosen = range(height)
        if rows is not None and rows < height:
            chosen = np.random.default_rng(0).choice(height, rows, replace=False)
        made += [one_row(table, int(row), error) for row in chosen]
    return made
