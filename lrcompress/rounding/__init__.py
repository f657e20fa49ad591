"""Rounding of matrices to integer codes, so that the network's output changes little.

Each method is one file and one row of ROUNDINGS.
"""

from __future__ import annotations

from lrcompress.errors import FitError
from lrcompress.messages import shown
from lrcompress.number_formats import Codes
from lrcompress.rounding.gptq import Gptq
from lrcompress.rounding.loss import product_loss, rounding_loss
from lrcompress.rounding.nearest import Nearest
from lrcompress.rounding.prepared_metric import PreparedMetric
from lrcompress.rounding.rounding_task import Rounding, RoundingTask
from lrcompress.rounding.two_sided import TwoSided

ROUNDINGS: dict[str, Rounding] = {
    "two-sided": TwoSided(),
    "gptq": Gptq(),
    "nearest": Nearest(),
}


def rounded(
    task: RoundingTask, method: str = "two-sided", *, metric: PreparedMetric | None = None
) -> Codes:
    """Round the weight of a task by a method of ROUNDINGS.

    metric: `PreparedMetric.of(task.input, task.output)` where several tasks share it; None: it is
    prepared here.

    Raises:
        FitError: an unknown method, shapes that differ, or values that are not finite.
    """
    chosen = ROUNDINGS.get(method)
    if chosen is None:
        raise FitError(f"rounding {shown(method)} is not one of {', '.join(ROUNDINGS)}")
    task.check()
    if metric is None:
        metric = PreparedMetric.of(*chosen.moments(task))
    return chosen.run(task, metric)


__all__ = [
    "ROUNDINGS",
    "PreparedMetric",
    "Rounding",
    "RoundingTask",
    "product_loss",
    "rounded",
    "rounding_loss",
]
