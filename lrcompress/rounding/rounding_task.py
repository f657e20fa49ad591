"""What to round, and the interface of a method that rounds it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lrcompress.errors import FitError
from lrcompress.number_formats import Codes, GridFormat
from lrcompress.rounding.prepared_metric import PreparedMetric


@dataclass(frozen=True, eq=False)
class RoundingTask:
    """A matrix W to round so that 1/2 tr(G (W - Q) C (W - Q)^T) is small.

    The moments C and G may be singular. A moment is full, diagonal, or None for the identity.
    """

    weight: Tensor  # W: (rows, columns), float64 or float32
    format: GridFormat
    input: Tensor | None = None  # C: (columns, columns) or (columns,)
    output: Tensor | None = None  # G: (rows, rows) or (rows,)

    def check(self) -> None:
        """Raise a FitError where shapes differ or the weight is not finite."""
        if self.weight.dim() != 2:
            raise FitError(f"rounding: the weight has shape {tuple(self.weight.shape)}, not 2 axes")
        if not bool(self.weight.isfinite().all()):
            raise FitError(
                "rounding: the weight holds NaN or infinity; repair the layer, or leave it out"
            )
        for moment, size, name in (
            (self.input, self.weight.shape[1], "input"),
            (self.output, self.weight.shape[0], "output"),
        ):
            if moment is not None and tuple(moment.shape) not in ((size,), (size, size)):
                raise FitError(
                    f"rounding: the {name} moment has shape {tuple(moment.shape)}; a weight of "
                    f"{tuple(self.weight.shape)} takes ({size},) or ({size}, {size})"
                )


class Rounding(ABC):
    """A method that chooses the grid and the codes of a matrix."""

    type_name: ClassVar[str]

    def moments(self, task: RoundingTask) -> tuple[Tensor | None, Tensor | None]:
        """Return the moments C and G that the method uses."""
        return task.input, task.output

    @abstractmethod
    def run(self, task: RoundingTask, metric: PreparedMetric) -> Codes:
        """Return the codes; `metric` is that of the task, in the form that feedback needs."""
