"""The loss of a rounded matrix in the metric of its task."""

from __future__ import annotations

import torch
from torch import Tensor

from lrcompress.number_formats import Codes
from lrcompress.rounding.moment_product import right_times, times
from lrcompress.rounding.rounding_task import RoundingTask


def rounding_loss(task: RoundingTask, codes: Codes) -> float:
    """Return 1/2 tr(G E C E^T) of the error E = weight - codes, in float64."""
    return product_loss(task.weight, codes.dequantised(), task.input, task.output)


def product_loss(
    weight: Tensor, rounded: Tensor, input: Tensor | None, output: Tensor | None
) -> float:
    """Return 1/2 tr(G E C E^T) of the error E = weight - rounded; all (rows, columns)."""
    error = weight.to(torch.float64) - rounded.to(torch.float64)
    return 0.5 * float((times(output, error) * right_times(error, input)).sum())
