"""Exact solver of the global allocator: dynamic programming over the few open choices.

The relaxation prices each choice by its loss above the relaxed optimum, and each unit of unspent
room by the multiplier w:

    loss of an allocation = bound + sum of prices + w * unspent room.

So an allocation better than the best known one uses only choices priced below the open gap. Few
layers have more than one of those (the core of the knapsack: Balas and Zemel 1980; Pisinger 1995).
Partial allocations are kept as (spent, price). One is dropped if another spends and loses no more,
or if its best completion is no better than the best known allocation. If too many remain, the
least promising are dropped; the best completion among those is then the proven bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lrcompress.planning.problem import Floats, Ints
from lrcompress.planning.relaxation import Relaxation, Table, lower_hull

MOST_EXTENSIONS = 2_000_000  # of partial allocations, by one layer: about 100 MB


@dataclass(frozen=True, eq=False)
class CoreSolution:
    chosen: Ints | None  # table rows, one per layer; None if nothing better was found
    excess: float  # loss of the best known allocation above the relaxation's bound
    proven: float  # no allocation has less excess than this


@dataclass(frozen=True, eq=False)
class _OpenLayer:
    """Choices of one layer relative to the relaxed one, which is first, with shift and price 0."""

    index: int
    rows: Ints
    shift: Ints  # cost above the relaxed choice
    price: Floats


def solve_core(
    table: Table, relaxed: Relaxation, *, room: int, excess: float, width: int
) -> CoreSolution:
    """Search for an allocation of excess below `excess`, keeping at most `width` partial ones."""
    left = room - int(table.cost[relaxed.chosen].sum())
    layers = _open_layers(table, relaxed, excess)
    completion = _Completion(layers, relaxed.multiplier, left)
    spent, price = np.zeros(1, dtype=np.int64), np.zeros(1)
    trail: list[tuple[Ints, Ints]] = []  # parent and option of each partial allocation
    best, best_at, dropped = excess, None, np.inf
    if relaxed.multiplier * left < excess:  # the relaxed choices alone
        best, best_at = relaxed.multiplier * left, (-1, 0)
    for stage, layer in enumerate(layers):
        options = len(layer.rows)
        spent = (spent[:, None] + layer.shift).ravel()
        price = (price[:, None] + layer.price).ravel()
        promise = price + completion.least(stage, spent)
        kept = _undominated(spent, price, relaxed.multiplier, np.flatnonzero(promise < best))
        if stage + 1 < len(layers):  # the next layer's extensions must fit in memory
            width = min(width, max(1, MOST_EXTENSIONS // len(layers[stage + 1].rows)))
        if len(kept) > width:
            ranked = kept[np.argsort(promise[kept], kind="stable")]
            dropped = min(dropped, float(promise[ranked[width]]))
            kept = np.sort(ranked[:width])
        if not len(kept):
            break
        spent, price = spent[kept], price[kept]
        trail.append((kept // options, kept % options))
        total = np.where(spent <= left, price + relaxed.multiplier * (left - spent), np.inf)
        finished = int(np.argmin(total))
        if total[finished] < best:
            best, best_at = float(total[finished]), (stage, finished)
    chosen = None if best_at is None else _follow(relaxed.chosen, layers, trail, *best_at)
    return CoreSolution(chosen, best, min(best, dropped))


def _open_layers(table: Table, relaxed: Relaxation, excess: float) -> list[_OpenLayer]:
    """Return the layers with an alternative priced below `excess`, cheapest alternative first."""
    rows = np.flatnonzero(relaxed.reduced < excess)
    base = relaxed.chosen[table.layer[rows]]
    rows = rows[rows != base]
    order = np.lexsort((relaxed.reduced[rows], table.layer[rows]))
    rows = rows[order]
    if not len(rows):
        return []
    indices, starts = np.unique(table.layer[rows], return_index=True)
    layers = []
    for index, group in zip(indices, np.split(rows, starts[1:]), strict=True):
        both = np.r_[relaxed.chosen[index], group]
        shift = table.cost[both] - table.cost[both[0]]
        price = np.r_[0.0, relaxed.reduced[group]]
        layers.append(_OpenLayer(int(index), both, shift, price))
    return sorted(layers, key=lambda layer: (layer.price[1], layer.index))


def _undominated(spent: Ints, price: Floats, multiplier: float, among: Ints) -> Ints:
    """Drop the partial allocations for which another one spends and loses no more."""
    loss = price[among] - multiplier * spent[among]
    order = np.lexsort((loss, spent[among]))
    best_before = np.minimum.accumulate(np.r_[np.inf, loss[order][:-1]])
    return np.sort(among[order[loss[order] < best_before]])


class _Completion:
    """Lower bound on the price of completing a partial allocation with the layers of later stages.

    Their prices are relaxed to convex hulls through the relaxed choice. The hulls' steps away from
    it, cheapest first, form one convex function of the cost still to be added or saved.
    """

    def __init__(self, layers: list[_OpenLayer], multiplier: float, left: int) -> None:
        self._multiplier, self._left = multiplier, left
        self._sides = tuple(
            _sorted_steps([_hull_steps(layer, sign) for layer in layers]) for sign in (-1, 1)
        )

    def least(self, stage: int, spent: Ints) -> Floats:
        """Return the bound for each partial allocation up to `stage`; infinite if infeasible."""
        (saved, saving), (added, adding) = (
            (np.cumsum(np.r_[0.0, length[later]]), np.cumsum(np.r_[0.0, price[later]]))
            for of_stage, length, price in self._sides
            for later in [of_stage > stage]
        )
        to_add = (self._left - spent).astype(np.float64)
        least = np.interp(to_add, np.r_[-saved[:0:-1], added], np.r_[saving[:0:-1], adding])
        least += self._multiplier * np.maximum(to_add - added[-1], 0.0)  # unspent room
        least[to_add < -saved[-1]] = np.inf
        return least


def _hull_steps(layer: _OpenLayer, sign: int) -> list[tuple[float, float]]:
    """Return (length, price) of the hull's steps on one side of the relaxed choice."""
    side = layer.shift * sign > 0
    away = sorted(zip(abs(layer.shift[side]).tolist(), layer.price[side].tolist(), strict=True))
    points = [(0.0, 0.0), *away]
    return [
        (points[b][0] - points[a][0], points[b][1] - points[a][1])
        for a, b in pairwise(lower_hull(points))
    ]


def _sorted_steps(steps: list[list[tuple[float, float]]]) -> tuple[Ints, Floats, Floats]:
    stage = np.repeat(np.arange(len(steps)), [len(of_stage) for of_stage in steps])
    both = np.array([step for of_stage in steps for step in of_stage]).reshape(-1, 2)
    order = np.argsort(both[:, 1] / both[:, 0], kind="stable")
    return stage[order], both[order, 0], both[order, 1]


def _follow(
    chosen: Ints, layers: list[_OpenLayer], trail: list[tuple[Ints, Ints]], stage: int, at: int
) -> Ints:
    chosen = chosen.copy()
    done = zip(layers[: stage + 1], trail[: stage + 1], strict=True)
    for layer, (parent, option) in reversed(list(done)):
        chosen[layer.index] = layer.rows[option[at]]
        at = int(parent[at])
    return chosen
