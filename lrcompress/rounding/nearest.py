"""Rounding to the nearest code of a grid over each block's full range."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from lrcompress.number_formats import Codes
from lrcompress.rounding.feedback import with_feedback
from lrcompress.rounding.prepared_metric import PreparedMetric
from lrcompress.rounding.rounding_task import Rounding, RoundingTask


class Nearest(Rounding):
    """Round to nearest as commonly published: no search of the range, no metric."""

    type_name: ClassVar[str] = "nearest"

    def moments(self, task: RoundingTask) -> tuple[Tensor | None, Tensor | None]:
        return None, None

    def run(self, task: RoundingTask, metric: PreparedMetric) -> Codes:
        grid = task.format.full_range_grid(task.weight)
        nothing = PreparedMetric(None, None)
        return with_feedback(task.weight, grid, nothing, narrow=task.format.narrow)
