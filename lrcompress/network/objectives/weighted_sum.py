"""The weighted sum of several outputs' divergences, on outputs that are packed into one tensor.

Heads may have any shapes, and their numbers of positions depend on the batch. A packed tensor is
(examples, heads + values): its first columns hold the number of positions of each head, followed
by the flattened values of each head. Its weights are the concatenated weights of the heads.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lrcompress.network.objectives.objective import Agreement, Objective, Reading


@dataclass(frozen=True)
class Part:
    """One head's objective, its number of features and its weight in the sum."""

    objective: Objective
    features: int
    weight: float


def packed(readings: Sequence[Reading]) -> Reading:
    """Pack several heads' outputs and weights into one tensor each.

    The dtype is at least float32, which represents counts of up to 2^24 positions.
    """
    examples = len(readings[0][0])
    dtype = torch.promote_types(readings[0][0].dtype, torch.float32)
    positions = [float(weights[0].numel()) for _, weights in readings]
    header = readings[0][0].new_tensor(positions, dtype=dtype).expand(examples, -1)
    outputs = torch.cat([header, *(x.reshape(examples, -1).to(dtype) for x, _ in readings)], 1)
    return outputs, torch.cat([w.reshape(examples, -1).to(dtype) for _, w in readings], 1)


@dataclass(frozen=True)
class WeightedSum(Objective):
    """D = sum over heads of weight times the head's own divergence, for packed outputs."""

    parts: tuple[Part, ...]

    name = "weighted-sum"

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        pairs = zip(
            self.parts, self._heads(dense, weights), self._heads(other, weights), strict=True
        )
        terms = [part.weight * part.objective.divergence(f, g, w) for part, (f, w), (g, _) in pairs]
        total: Tensor = torch.stack(terms).sum(0)
        return total

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        """Return packed probes, drawn independently per head: cross terms average to zero."""
        drawn = [
            part.weight**0.5 * part.objective.probe(f, w, generator).reshape(len(f), -1)
            for part, (f, w) in zip(self.parts, self._heads(dense, weights), strict=True)
        ]
        header = dense.new_zeros(len(dense), len(self.parts), dtype=drawn[0].dtype)
        return torch.cat([header, *drawn], 1)

    def agreement(self, dense: Tensor, other: Tensor, weights: Tensor) -> Agreement | None:
        """Return the agreement, summed over the heads that make choices."""
        pairs = zip(
            self.parts, self._heads(dense, weights), self._heads(other, weights), strict=True
        )
        found = [part.objective.agreement(f, g, w) for part, (f, w), (g, _) in pairs]
        counts = [count for count in found if count is not None]
        if not counts:
            return None
        return sum(agreed for agreed, _ in counts), sum(positions for _, positions in counts)

    def _heads(self, outputs: Tensor, weights: Tensor) -> list[Reading]:
        """Unpack each head's (examples, positions, features) and (examples, positions)."""
        count = len(self.parts)
        positions = [int(value) for value in outputs[0, :count].tolist()]
        sizes = [n * part.features for n, part in zip(positions, self.parts, strict=True)]
        values = torch.split(outputs[:, count:], sizes, 1)
        shares = torch.split(weights, positions, 1)
        return [
            (value.reshape(len(outputs), n, part.features), share)
            for value, share, n, part in zip(values, shares, positions, self.parts, strict=True)
        ]


@dataclass(frozen=True)
class Scaled(Objective):
    """D = weight times another objective's divergence."""

    of: Objective
    weight: float

    @property
    def name(self) -> str:  # type: ignore[override]
        return self.of.name

    def divergence(self, dense: Tensor, other: Tensor, weights: Tensor) -> Tensor:
        return self.weight * self.of.divergence(dense, other, weights)

    def probe(self, dense: Tensor, weights: Tensor, generator: torch.Generator) -> Tensor:
        v: Tensor = self.weight**0.5 * self.of.probe(dense, weights, generator)
        return v

    def agreement(self, dense: Tensor, other: Tensor, weights: Tensor) -> Agreement | None:
        return self.of.agreement(dense, other, weights)
