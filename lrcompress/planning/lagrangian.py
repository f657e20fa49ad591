"""Lower bound of a problem with several budgets, by Lagrangian duality.

For prices w >= 0 of the budgets, no allocation within the rooms loses less than

    L(w) = sum over layers of min over choices (loss + w . cost) - w . room.

L is concave and piecewise linear. Kelley's cutting planes find its maximum: each evaluation gives
an allocation, whose linear function of w bounds L from above.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linprog

from lrcompress.planning.joint_problem import JointProblem
from lrcompress.planning.problem import Floats, Ints

MOST_CUTS = 80
HIGHEST = 1e6  # price of a room, in sums of the largest losses: only if nothing fits
CLOSE = 1e-9  # relative distance of the cuts' maximum above the best evaluation


@dataclass(frozen=True, eq=False)
class Dual:
    prices: Floats  # loss per unit of each cost
    bound: float  # no allocation within the rooms loses less
    reduced: Floats  # loss + prices . cost of each row, minus its layer's least; >= 0
    seen: tuple[Ints, ...]  # rows of the allocations that were met on the way


def maximise_dual(problem: JointProblem) -> Dual:
    """Return the best prices found, and the bound that they prove."""
    unit = np.maximum(problem.rooms, 1).astype(np.float64)
    cost = problem.costs / unit  # (rows, budgets), in units of the rooms
    room = problem.rooms / unit
    scale = float(np.maximum.reduceat(problem.losses, problem.start).sum()) or 1.0
    slopes, offsets, seen = [], [], []
    best, best_price = -np.inf, np.zeros(len(room))
    price = np.zeros(len(room))
    for _ in range(MOST_CUTS):
        value, rows = _evaluate(problem, cost, room, price)
        seen.append(rows)
        if value > best:
            best, best_price = value, price
        slopes.append(cost[rows].sum(axis=0) - room)
        offsets.append(float(problem.losses[rows].sum()))
        price, ceiling = _highest_point(np.array(slopes), np.array(offsets), scale)
        if ceiling - best <= CLOSE * max(abs(best), 1e-6 * scale):
            break
    priced = problem.losses + cost @ best_price
    least = np.minimum.reduceat(priced, problem.start)
    return Dual(best_price / unit, best, priced - least[problem.layer], tuple(seen))


def _evaluate(
    problem: JointProblem, cost: Floats, room: Floats, price: Floats
) -> tuple[float, Ints]:
    """Return L(price), and a row of each layer that attains its minimum."""
    priced = problem.losses + cost @ price
    least = np.minimum.reduceat(priced, problem.start)
    at = np.flatnonzero(priced == least[problem.layer])
    _, first = np.unique(problem.layer[at], return_index=True)
    return float(least.sum() - room @ price), at[first]


def _highest_point(slopes: Floats, offsets: Floats, scale: float) -> tuple[Floats, float]:
    """Return the prices at which the lowest of the cuts is highest, and its height there.

    scale: of the losses; the solver's tolerances are relative to it, and prices up to `HIGHEST`.
    """
    count, budgets = slopes.shape
    found = linprog(
        np.r_[np.zeros(budgets), -1.0],
        A_ub=np.c_[-slopes, np.ones(count)],
        b_ub=offsets / scale,
        bounds=[(0.0, HIGHEST)] * budgets + [(None, None)],
        method="highs-ds",
    )
    assert found.status == 0, found.message
    return np.maximum(found.x[:budgets], 0.0) * scale, float(found.x[budgets]) * scale
