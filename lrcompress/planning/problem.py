"""The allocation problem: one choice per layer, with the least total loss within the room."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from lrcompress.planning.budget import BudgetKind
from lrcompress.planning.choices import Choice
from lrcompress.profiling.profile import LayerProfile
from lrcompress.structures import Dense, Structure

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Problem:
    """A multiple-choice knapsack problem.

    Within a layer, costs rise strictly and losses fall strictly: dominated choices are removed (a
    cheaper rank without loss dominates dense).
    """

    layers: tuple[LayerProfile, ...]
    choices: tuple[tuple[Choice, ...], ...]
    costs: tuple[Ints, ...]
    losses: tuple[Floats, ...]
    removal_losses: tuple[float, ...]  # losses of zero weights
    room: int  # the budget minus the cost of what cannot change
    offered: tuple[frozenset[Structure], ...] = ()  # per layer, dominated choices included

    @property
    def smallest_cost(self) -> int:
        return sum(int(cost[0]) for cost in self.costs)

    def offers(self, structures: Mapping[str, Structure]) -> bool:
        """Whether each layer's structure is dense or one of its choices."""
        return offers(self.layers, self.offered, structures)

    def allocation(self, chosen: Sequence[int], lower_bound: float | None = None) -> Allocation:
        return Allocation(
            chosen=tuple(int(i) for i in chosen),
            loss=float(sum(loss[i] for loss, i in zip(self.losses, chosen, strict=True))),
            cost=sum(int(cost[i]) for cost, i in zip(self.costs, chosen, strict=True)),
            lower_bound=lower_bound,
        )

    def proof(self, bound: float) -> str:
        """Return the sha256 of a lower bound and of the problem that it was proven for.

        The problem is given by all costs and losses and the room, which follow from the profile,
        the budget and the options.
        """
        digest = hashlib.sha256(f"{bound!r} {self.room}".encode())
        for layer, cost, loss in zip(self.layers, self.costs, self.losses, strict=True):
            digest.update(layer.name.encode() + b"\0" + cost.tobytes())
            # Rounded, since a profile that was written and read differs in the last digits
            digest.update(",".join(f"{value:.9e}" for value in loss).encode())
        return digest.hexdigest()


def offers(
    layers: Sequence[LayerProfile],
    offered: Sequence[frozenset[Structure]],
    structures: Mapping[str, Structure],
) -> bool:
    """Whether each layer's structure is dense or among those offered."""
    pairs = zip(layers, offered, strict=True)
    return all(
        isinstance(structures[layer.name], Dense) or structures[layer.name] in known
        for layer, known in pairs
    )


@dataclass(frozen=True)
class Allocation:
    """A solution; `chosen[l]` is the index into `Problem.choices[l]`."""

    chosen: tuple[int, ...]
    loss: float
    cost: int
    lower_bound: float | None = None  # proven: no allocation within the room loses less


def pose(
    layers: Sequence[LayerProfile],
    choices: Sequence[Sequence[Choice]],
    *,
    metric: str,
    kind: BudgetKind,
    room: int,
) -> Problem:
    """Build the problem from the undominated choices of each layer."""
    kept: list[tuple[Choice, ...]] = []
    costs: list[Ints] = []
    losses: list[Floats] = []
    for options in choices:
        cost = np.array([option.of(kind) for option in options], dtype=np.int64)
        loss = np.array([option.loss for option in options], dtype=np.float64)
        order = np.lexsort((loss, cost))
        best_so_far = np.minimum.accumulate(loss[order])
        better = np.r_[True, loss[order][1:] < best_so_far[:-1]]
        front = order[better]
        kept.append(tuple(options[i] for i in front))
        costs.append(cost[front])
        losses.append(loss[front])
    removal = tuple(layer.loss_of_removal(metric) for layer in layers)
    offered = tuple(frozenset(option.structure for option in options) for options in choices)
    return Problem(tuple(layers), tuple(kept), tuple(costs), tuple(losses), removal, room, offered)
