"""One measured output of a network: its name, its layout and its divergence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.network.batches import Batch
from lrcompress.network.objectives import OBJECTIVES
from lrcompress.network.objectives.objective import Reading


@dataclass(frozen=True)
class Head:
    """One measured output.

    A call returns outputs (examples, *positions, features) and weights (examples, *positions),
    which are 0 on padding.
    """

    name: str
    objective: str  # a name in OBJECTIVES
    taken_for: str = ""  # what the output is taken for, such as "logits"
    why: str = ""
    shape: tuple[int, ...] = ()  # on the first batch
    examples_at: int = 0  # dimension
    features_at: int | None = None  # dimension; None: one value at each position
    pooling: str | None = None  # "mean" or "cls" over positions
    weight: float = 1.0  # of its divergence
    assumed: bool = False  # neither its name nor its values are conclusive

    def __post_init__(self) -> None:
        if self.objective not in OBJECTIVES:
            known = ", ".join(OBJECTIVES)
            raise DataError(f"objective {self.objective!r} is unknown; choose {known}")
        if not 0 < self.weight < float("inf"):
            raise DataError(f"output {self.name!r}: its weight is {self.weight}; profile again")

    def __call__(self, outputs: Mapping[str, Tensor], batch: Batch) -> Reading:
        if self.name not in outputs:
            raise DataError(
                f"the model does not return {self.name!r} on every batch; it returned "
                f"{', '.join(map(repr, outputs))}; name an output of every batch with --output-name"
            )
        values = self.arranged(outputs[self.name])
        mask = batch.get("attention_mask")
        positions = values.shape[:-1]
        if mask is not None and mask.shape == positions:
            weights = mask.to(values)
        else:
            weights = values.new_ones(positions)
        if self.pooling == "mean" and values.dim() == 3:
            total = (values * weights.unsqueeze(-1)).sum(1)
            values = total / weights.sum(1, keepdim=True).clamp_min(1e-9)
            weights = values.new_ones(values.shape[:-1])
        elif self.pooling == "cls" and values.dim() == 3:
            values, weights = values[:, 0], weights[:, 0]
        return values, weights

    def arranged(self, tensor: Tensor) -> Tensor:
        """Return the tensor with examples first and features last.

        Raises:
            DataError: it has fewer dimensions than on the first batch.
        """
        if tensor.dim() <= max(self.examples_at, self.features_at or 0):
            raise DataError(
                f"output {self.name!r} is {sizes(tuple(tensor.shape))} on one batch and "
                f"{sizes(self.shape)} on another; give batches of the same form"
            )
        ends = (self.examples_at, self.features_at)
        middle = [dim for dim in range(tensor.dim()) if dim not in ends]
        if self.features_at is None:
            return tensor.permute(self.examples_at, *middle).unsqueeze(-1)
        return tensor.permute(self.examples_at, *middle, self.features_at)

    @property
    def line(self) -> str:
        """One line that says what the output was taken for and why."""
        layout = []
        if self.examples_at:
            layout.append(f"examples along dimension {self.examples_at}")
        if self.features_at is not None and self.features_at != len(self.shape) - 1:
            layout.append(f"features along dimension {self.features_at}")
        if self.pooling and len(self.shape) == 3:
            layout.append(f"{self.pooling} over positions")
        where = f" ({', '.join(layout)})" if layout else ""
        why = f"; {self.why}" if self.why else ""
        taken = f"{self.taken_for}{where}, divergence {self.objective}{why}"
        return f"output {self.name!r} ({sizes(self.shape)}): {taken}"


def sizes(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
