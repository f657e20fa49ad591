"""Rounding with error feedback along inputs and outputs."""

from __future__ import annotations

from typing import ClassVar

from lrcompress.number_formats import Codes
from lrcompress.rounding.feedback import with_feedback
from lrcompress.rounding.prepared_metric import PreparedMetric
from lrcompress.rounding.rounding_task import Rounding, RoundingTask
from lrcompress.rounding.scale_refit import refitted


class TwoSided(Rounding):
    """Each code corrects the error of earlier columns and of earlier rows.

    With E = W - Q the error of what is rounded already:

        v_ij = w_ij + sum_{l<j} e_il U_C[l, j]
        q_ij = round(v_ij + sum_{k<i} U_G[k, i] (v_kj - q_kj))

    as in YAQA (Tseng et al. 2025), on a grid weighted by the input's conditional variances. The
    scales are refitted afterwards.
    """

    type_name: ClassVar[str] = "two-sided"

    def run(self, task: RoundingTask, metric: PreparedMetric) -> Codes:
        importance = None if metric.input is None else metric.input.importance
        grid = task.format.grid(task.weight, importance)
        return refitted(task, with_feedback(task.weight, grid, metric, narrow=task.format.narrow))
