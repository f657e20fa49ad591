"""The readout: which outputs of a network are measured, with which pooling and divergence."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lrcompress.errors import DataError
from lrcompress.network.batches import Batch
from lrcompress.network.head import Head
from lrcompress.network.objectives import OBJECTIVES
from lrcompress.network.objectives.objective import Objective, Reading
from lrcompress.network.objectives.weighted_sum import Part, Scaled, WeightedSum, packed
from lrcompress.network.output_recognition import Sample, recognise
from lrcompress.network.outputs import HIDDEN, has_name, measured_names, named_outputs

SEVERAL = "weighted-sum"  # the objective of several heads


@dataclass(frozen=True)
class Readout:
    """The measured outputs of a network, read from its raw output.

    A call returns outputs (examples, *positions, features) and weights (examples, *positions),
    which are 0 on padding. Several heads are packed into one tensor, which `objective` unpacks
    (weighted_sum.py).
    """

    heads: tuple[Head, ...]
    features: tuple[int, ...] = ()  # of each head, where there are several
    unseen: float = 0.0  # share of the probes whose classes are permuted (see unseen_classes.py)

    def __post_init__(self) -> None:
        if not self.heads or (len(self.heads) > 1 and len(self.features) != len(self.heads)):
            raise DataError("the profile's readout does not say what is measured; profile again")

    @property
    def objective(self) -> Objective:
        first = self.heads[0]
        if len(self.heads) == 1:
            plain = OBJECTIVES[first.objective]
            return plain if first.weight == 1 else Scaled(plain, first.weight)
        return WeightedSum(
            tuple(
                Part(OBJECTIVES[head.objective], features, head.weight)
                for head, features in zip(self.heads, self.features, strict=True)
            )
        )

    @property
    def objective_name(self) -> str:
        return self.heads[0].objective if len(self.heads) == 1 else SEVERAL

    @property
    def pooling(self) -> str | None:
        return next((head.pooling for head in self.heads if head.pooling), None)

    @property
    def lines(self) -> tuple[str, ...]:
        """One line for each output that says what it was taken for and why."""
        if len(self.heads) == 1:
            return (self.heads[0].line,)
        return tuple(f"{head.line}; weight {head.weight:.3g} in the sum" for head in self.heads)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Return the objective's probe v, of the outputs' shape; a share `unseen` is permuted."""
        v = self.objective.probe(dense, weights, generator)
        return permuted(v, self.unseen, generator) if self.unseen else v

    def __call__(self, raw: object, batch: Batch) -> Reading:
        outputs = named_outputs(raw)
        readings = [head(outputs, batch) for head in self.heads]
        return readings[0] if len(readings) == 1 else packed(readings)

    def arranged(self, tensor: Tensor) -> Tensor:
        """Return the tensor as a single head reads it; unchanged if its form does not fit."""
        head = self.heads[0]
        if len(self.heads) > 1 or tensor.dim() != len(head.shape):
            return tensor
        return head.arranged(tensor)


def permuted(v: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Permute the classes of a random share of the probes v: (examples, classes).

    Unseen classes then get as much weight as seen ones.
    """
    hit = torch.rand((len(v), 1), generator=generator) < share
    order = torch.rand(v.shape, generator=generator).argsort(-1)
    return torch.where(hit.to(v.device), v.gather(-1, order.to(v.device)), v)


def choose_readout(
    raw: object,
    *,
    objective: str = "auto",
    pooling: str | None = None,
    outputs: Sequence[str] = (),
    batch: Batch | None = None,
) -> tuple[Readout, tuple[str, ...]]:
    """Return a readout chosen from one raw output, examples first, and its assumptions.

    `find_readout` also runs the network, and so finds out more.

    Raises:
        DataError: no floating-point tensor among the outputs, an unknown output or objective.
    """
    check_objective(objective)
    names, note = measured_names(raw, outputs, batch)
    tensors, named = named_outputs(raw), has_name(raw)
    heads = [
        recognise(
            Sample(name, named, (tensors[name],)), 0, objective=objective, alone=len(names) == 1
        )
        for name in names
    ]
    readout = joined([pooled(head, pooling, named=named) for head in heads], raw, batch or {})
    return readout, assumptions(readout, note)


def check_objective(objective: str) -> None:
    """Raise DataError for an unknown objective."""
    if objective != "auto" and objective not in OBJECTIVES:
        known = ", ".join(OBJECTIVES)
        raise DataError(f"objective {objective!r} is unknown; choose auto, {known}")


def pooled(head: Head, pooling: str | None, *, named: bool) -> Head:
    """Return the head with `pooling` if its output may be token embeddings."""
    return replace(head, pooling=pooling) if head.name in HIDDEN or not named else head


def joined(heads: Sequence[Head], raw: object, batch: Batch) -> Readout:
    """Return the readout of some heads; their numbers of features are read from `raw`."""
    if len(heads) == 1:
        return Readout(tuple(heads))
    tensors = named_outputs(raw)
    features = tuple(head(tensors, batch)[0].shape[-1] for head in heads)
    return Readout(tuple(heads), features)


def assumptions(readout: Readout, note: str = "") -> tuple[str, ...]:
    """Lines for the user: what was assumed and what was left out."""
    assumed = tuple(f"assumed: {head.line}" for head in readout.heads if head.assumed)
    return (*assumed, note) if note else assumed
