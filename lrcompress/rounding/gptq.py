"""Rounding with error feedback along inputs only: GPTQ."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lrcompress.number_formats import Codes
from lrcompress.rounding.feedback import with_feedback
from lrcompress.rounding.prepared_metric import PreparedMetric
from lrcompress.rounding.rounding_task import Rounding, RoundingTask


class Gptq(Rounding):
    """Each code corrects the error of earlier columns of its row (Frantar et al. 2022)."""

    type_name: ClassVar[str] = "gptq"

    def moments(self, task: RoundingTask) -> tuple[Tensor | None, Tensor | None]:
        return task.input, None

    def run(self, task: RoundingTask, metric: PreparedMetric) -> Codes:
        importance = None if metric.input is None else metric.input.importance
        grid = task.format.grid(task.weight, importance)
        one_sided = PreparedMetric(metric.input, None)
        return with_feedback(task.weight, grid, one_sided, narrow=task.format.narrow)
