"""The linear relaxation of the knapsack, solved exactly by one sort.

Its optimum follows the lower convex hulls of the layers' curves, steepest step first, and splits
at most one step (Sinha and Zoltners 1979; Dyer 1984; Zemel 1984).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from lrcompress.planning.problem import Floats, Ints, Problem


@dataclass(frozen=True, eq=False)
class Table:
    """All choices of all layers in one sequence: the vectorised view of a Problem."""

    layer: Ints  # of each choice
    cost: Ints
    loss: Floats
    start: Ints  # first row of each layer

    @classmethod
    def of(cls, problem: Problem) -> Table:
        sizes = np.array([len(cost) for cost in problem.costs], dtype=np.int64)
        return cls(
            layer=np.repeat(np.arange(len(sizes)), sizes),
            cost=np.concatenate(problem.costs),
            loss=np.concatenate(problem.losses),
            start=np.r_[0, np.cumsum(sizes)[:-1]],
        )


@dataclass(frozen=True, eq=False)
class Relaxation:
    chosen: Ints  # rows of the table: the relaxed optimum without its split step
    multiplier: float  # loss per unit of cost at the optimum; 0 if the budget does not bind
    reduced: Floats  # loss + multiplier * cost of each row, minus its layer's least; >= 0
    bound: float  # least loss of the relaxation: no allocation loses less


def relax(table: Table, room: int) -> Relaxation:
    """Solve the relaxation of a feasible problem."""
    hull = _lower_hulls(table)
    steps = np.flatnonzero(table.layer[hull][1:] == table.layer[hull][:-1])
    before, after = hull[steps], hull[steps + 1]
    extra = table.cost[after] - table.cost[before]
    steepness = (table.loss[before] - table.loss[after]) / extra
    order = np.argsort(-steepness, kind="stable")  # ties keep the order of the layers

    spent = np.cumsum(extra[order])
    left = room - int(table.cost[table.start].sum())
    taken = int(np.searchsorted(spent, left, side="right"))
    chosen = table.start.copy()
    chosen[table.layer[after[order[:taken]]]] = after[order[:taken]]  # later steps overwrite
    multiplier = float(steepness[order[taken]]) if taken < len(order) else 0.0

    priced = table.loss + multiplier * table.cost
    least = np.minimum.reduceat(priced, table.start)
    bound = float(least.sum() - multiplier * room)
    return Relaxation(chosen, multiplier, priced - least[table.layer], bound)


def _lower_hulls(table: Table) -> Ints:
    """Return the rows on the lower convex hull of their layer, in order."""
    hulls = []
    for start, end in pairwise([*table.start.tolist(), len(table.cost)]):
        points = zip(table.cost[start:end].tolist(), table.loss[start:end].tolist(), strict=True)
        hulls.append(start + np.array(lower_hull(points), dtype=np.int64))
    return np.concatenate(hulls)


def lower_hull(points: Iterable[tuple[float, float]]) -> list[int]:
    """Return the indices of the strictly convex lower hull of points sorted by x, ends included."""
    hull: list[int] = []
    corners: list[tuple[float, float]] = []
    for index, (x, y) in enumerate(points):
        while len(corners) > 1:
            (x0, y0), (x1, y1) = corners[-2:]
            if (y1 - y0) * (x - x0) < (y - y0) * (x1 - x0):
                break
            corners.pop()
            hull.pop()
        corners.append((x, y))
        hull.append(index)
    return hull
