"""The allocation problem under several budgets: the least total loss within every room."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from lrcompress.planning.choices import Choice
from lrcompress.planning.limit import Limit
from lrcompress.planning.problem import Allocation, Floats, Ints, Problem, offers
from lrcompress.profiling.profile import LayerProfile
from lrcompress.structures import Structure


@dataclass(frozen=True, eq=False)
class JointProblem:
    """A multiple-choice knapsack problem with several costs.

    Choices of one layer are in one run of rows; no choice of a layer is better than another one in
    its loss and in no cost worse.
    """

    layers: tuple[LayerProfile, ...]
    choices: tuple[tuple[Choice, ...], ...]
    costs: Ints  # (choices of all layers, budgets)
    losses: Floats  # (choices of all layers,)
    removal_losses: tuple[float, ...]  # losses of zero weights
    rooms: Ints  # (budgets,)
    limits: tuple[Limit, ...]
    offered: tuple[frozenset[Structure], ...]  # per layer, dominated choices included

    @cached_property
    def start(self) -> Ints:
        """The first row of each layer."""
        sizes = [len(of_layer) for of_layer in self.choices]
        start: Ints = np.r_[0, np.cumsum(sizes)[:-1]].astype(np.int64)
        return start

    @cached_property
    def layer(self) -> Ints:
        """The layer of each row."""
        return np.repeat(np.arange(len(self.choices)), [len(x) for x in self.choices])

    @property
    def smallest_costs(self) -> Ints:
        """The least cost in each budget, whatever it is in the others."""
        least: Ints = np.minimum.reduceat(self.costs, self.start, axis=0).sum(axis=0)
        return least

    def offers(self, structures: Mapping[str, Structure]) -> bool:
        """Whether each layer's structure is dense or one of its choices."""
        return offers(self.layers, self.offered, structures)

    def proof(self, bound: float) -> str:
        """Return the sha256 of a lower bound and of the problem that it was proven for."""
        digest = hashlib.sha256(f"{bound!r} {self.rooms.tolist()}".encode())
        for layer, start, own in zip(self.layers, self.start.tolist(), self.choices, strict=True):
            rows = slice(start, start + len(own))
            digest.update(layer.name.encode() + b"\0" + self.costs[rows].tobytes())
            # Rounded, since a profile that was written and read differs in the last digits
            digest.update(",".join(f"{value:.9e}" for value in self.losses[rows]).encode())
        return digest.hexdigest()

    def fits(self, rows: Ints) -> bool:
        return bool((self.costs[rows].sum(axis=0) <= self.rooms).all())

    def allocation(self, rows: Ints, lower_bound: float | None = None) -> Allocation:
        """Return the allocation that takes one row of each layer; its cost is the first one."""
        return Allocation(
            chosen=tuple((rows - self.start).tolist()),
            loss=float(self.losses[rows].sum()),
            cost=int(self.costs[rows, 0].sum()),
            lower_bound=lower_bound,
        )

    def single(self, cost: Ints, loss: Floats, room: int) -> tuple[Problem, list[Ints]]:
        """Return a problem with one cost over the same choices, and the rows of its choices.

        cost, loss: of each row.
        """
        costs, losses, rows = [], [], []
        for start, of_layer in zip(self.start.tolist(), self.choices, strict=True):
            own = np.arange(start, start + len(of_layer))
            order = own[np.lexsort((loss[own], cost[own]))]
            best = np.minimum.accumulate(loss[order])
            front = order[np.r_[True, loss[order][1:] < best[:-1]]]
            costs.append(cost[front])
            losses.append(loss[front])
            rows.append(front)
        choices = tuple(
            tuple(of_layer[i] for i in (front - start).tolist())
            for of_layer, front, start in zip(self.choices, rows, self.start, strict=True)
        )
        problem = Problem(
            self.layers, choices, tuple(costs), tuple(losses), self.removal_losses, room
        )
        return problem, rows


def pose_jointly(
    layers: Sequence[LayerProfile],
    choices: Sequence[Sequence[Choice]],
    *,
    metric: str,
    limits: Sequence[Limit],
) -> JointProblem:
    """Build the problem from the undominated choices of each layer."""
    kinds = [limit.budget.kind for limit in limits]
    kept, costs, losses = [], [], []
    for options in choices:
        cost = np.array([[one.of(kind) for kind in kinds] for one in options], dtype=np.int64)
        loss = np.array([one.loss for one in options], dtype=np.float64)
        front = undominated(cost, loss)
        kept.append(tuple(options[i] for i in front))
        costs.append(cost[front])
        losses.append(loss[front])
    return JointProblem(
        layers=tuple(layers),
        choices=tuple(kept),
        costs=np.concatenate(costs) if costs else np.zeros((0, len(kinds)), np.int64),
        losses=np.concatenate(losses) if losses else np.zeros(0),
        removal_losses=tuple(layer.loss_of_removal(metric) for layer in layers),
        rooms=np.array([limit.room for limit in limits], dtype=np.int64),
        limits=tuple(limits),
        offered=tuple(frozenset(one.structure for one in options) for options in choices),
    )


def undominated(cost: Ints, loss: Floats) -> list[int]:
    """Return the indices of the choices that no other one equals or beats in everything.

    cost: (choices, budgets); loss: (choices,). Of equal choices the first one stays.
    """
    order = np.lexsort((*cost.T[::-1], loss))  # by loss, then by the costs
    kept: list[int] = []
    for index in order.tolist():  # only a choice with no larger loss can dominate it
        if not kept or not (cost[kept] <= cost[index]).all(axis=1).any():
            kept.append(index)
    return kept
