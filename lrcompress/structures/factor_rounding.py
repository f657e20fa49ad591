"""Rounds the factors of one layer to their formats, each in the metric that the others leave."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lrcompress.metrics.root import Root
from lrcompress.number_formats import CastFormat, Codes, Format, Grid, GridFormat
from lrcompress.rounding import RoundingTask, rounded
from lrcompress.rounding.factors import rounded_product
from lrcompress.structures.dense import Dense
from lrcompress.structures.low_rank import LowRank
from lrcompress.structures.structure import Factors, FitTask, Structure

MANY_GROUPS = 16  # more are rounded together, without feedback between weights
SEED = 0  # of the rotation of a low-rank bond

Rounded = Mapping[str, Codes | Tensor]  # codes of stored matrices, or float factors


@dataclass(frozen=True, eq=False)
class FactorRounding:
    """The inner structure, the task that its factors solve, and each factor's format."""

    structure: Structure
    task: FitTask
    formats: Mapping[str, Format]

    def run(self, factors: Factors) -> Rounded:
        """Return the codes of the factors in grid formats, and the others as tensors."""
        if not any(isinstance(format, GridFormat) for format in self.formats.values()):
            return dict(factors)
        if isinstance(self.structure, Dense):
            return {"weight": self._dense(factors["weight"])}
        if isinstance(self.structure, LowRank):
            return self._low_rank(factors)
        return {name: self._alone(name, value) for name, value in factors.items()}

    def _alone(self, name: str, factor: Tensor) -> Codes | Tensor:
        """Round a factor without a metric."""
        format = self.formats[name]
        if not isinstance(format, GridFormat):
            return factor
        return rounded(RoundingTask(factor.reshape(-1, factor.shape[-1]), format))

    def _dense(self, weight: Tensor) -> Codes:
        format = self.formats["weight"]
        assert isinstance(format, GridFormat)
        whitening = self.task.whitening
        if self.task.spec.kind == "embedding":  # stored by token
            input, output = _gram(whitening.output, 0), _gram(whitening.input, 0)
            return rounded(RoundingTask(weight[0].mT, format, input, output))
        groups = range(weight.shape[0])
        if len(groups) > MANY_GROUPS:
            return rounded(RoundingTask(weight.reshape(-1, weight.shape[-1]), format))
        tasks = (
            RoundingTask(
                weight[group], format, _gram(whitening.input, group), _gram(whitening.output, group)
            )
            for group in groups
        )
        codes: Codes = _stacked([rounded(task) for task in tasks])
        return codes

    def _low_rank(self, factors: Factors) -> Rounded:
        spec, whitening = self.task.spec, self.task.whitening
        by_token = spec.kind == "embedding"
        lefts: list[Codes | Tensor] = []
        rights: list[Codes | Tensor] = []
        for group in range(spec.groups):
            left, right = rounded_product(
                self.task.weight[group].double(),
                factors["left"][group].double(),
                factors["right"][group].double(),
                _stored_as(self.formats["left"]),
                _stored_as(self.formats["right"]),
                _gram(whitening.input, group),
                _gram(whitening.output, group),
                torch.Generator().manual_seed(SEED),
                right_by_column=by_token,
            )
            lefts.append(left)
            rights.append(right.mT if by_token and isinstance(right, Tensor) else right)
        return {"left": _stacked(lefts), "right": _stacked(rights)}


def _stored_as(format: Format) -> GridFormat | CastFormat:
    assert isinstance(format, GridFormat | CastFormat)
    return format


def _gram(root: Root, group: int) -> Tensor | None:
    gram = root.gram()
    return None if gram is None else gram[group]


def _stacked(parts: Sequence[Codes | Tensor]) -> Any:
    """Join the rows of several groups."""
    first = parts[0]
    if isinstance(first, Tensor):
        return torch.stack([part for part in parts if isinstance(part, Tensor)])
    codes = [part for part in parts if isinstance(part, Codes)]
    zeros = [part.grid.zeros for part in codes if part.grid.zeros is not None]
    grid = replace(
        first.grid,
        scales=torch.cat([part.grid.scales for part in codes]),
        zeros=torch.cat(zeros) if zeros else None,
    )
    return Codes(Grid(**vars(grid)), torch.cat([part.codes for part in codes]))
