"""Allocation under several budgets: a Lagrangian bound, a greedy repair, and an integer program.

The prices of the dual leave few choices open: a choice whose reduced loss is above the gap between
the best known allocation and the bound is in no better one. HiGHS solves the program over the open
ones, up to a number of nodes, so that the result does not depend on the machine's speed.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from lrcompress.planning.global_allocator import allocate_globally
from lrcompress.planning.integer_program import GOOD_ENOUGH, solve_program
from lrcompress.planning.joint_problem import JointProblem
from lrcompress.planning.lagrangian import Dual, maximise_dual
from lrcompress.planning.problem import Allocation, Ints, Problem

REPAIRED = 8  # of the dual's allocations: the last ones are nearest to its optimum
MIXED = 10**6  # units of a room, in a mixed cost
ROUNDING = 1e-9  # of the summed losses, and of a room: what the solver's tolerances hide
TIGHTER = 1 - 4e-6  # of a room, where the solver's tolerance led beyond it


def allocate_jointly(problem: JointProblem) -> Allocation | None:
    """Minimise the total loss within every room, with a proven lower bound.

    Returns None if no allocation within the rooms was found.
    """
    if not len(problem.losses):
        return Allocation((), 0.0, 0, 0.0) if (problem.rooms >= 0).all() else None
    if (problem.smallest_costs > problem.rooms).any():
        return None
    dual = maximise_dual(problem)
    worst = float(np.maximum.reduceat(problem.losses, problem.start).sum())
    if dual.bound > worst * (1 + 1e-6):
        return None  # not even the worst choices lose so much
    repaired = (_repaired(problem, rows) for rows in dual.seen[-REPAIRED:])
    known = [_filled(problem, rows) for rows in repaired if rows is not None]
    known += _within_each(problem)
    best = min(known, key=lambda rows: float(problem.losses[rows].sum()), default=None)
    found, proven = _integer_program(problem, dual, best)
    if found is not None:
        best = found
    if best is None:
        return None
    loss = float(problem.losses[best].sum())
    bound = max(min(max(dual.bound, proven), loss), 0.0)
    return problem.allocation(best, lower_bound=bound)


def allocate_mixed(
    problem: JointProblem, allocate: Callable[[Problem], Allocation]
) -> Allocation | None:
    """Allocate by one mixed cost: the sum of the costs, each as a share of its room.

    The room of the mixed cost is reduced until the allocation fits into every room, by bisection.
    """
    unit = np.maximum(problem.rooms, 1)
    mixed = np.ceil(problem.costs / unit * MIXED).sum(axis=1).astype(np.int64)
    found: Allocation | None = None
    least = int(np.minimum.reduceat(mixed, problem.start).sum())
    low, high = least, MIXED * len(problem.rooms)
    while low <= high:
        middle = (low + high + 1) // 2
        single, fronts = problem.single(mixed, problem.losses, middle)
        chosen = allocate(single).chosen
        rows = np.array([front[i] for front, i in zip(fronts, chosen, strict=True)])
        if problem.fits(rows):
            found, low = problem.allocation(rows), middle + 1
        else:
            high = middle - 1
    return found


def least_cost(problem: JointProblem, budget: int) -> int | None:
    """Return the least cost in one of two budgets of an allocation within the other room.

    None if the other room holds none.
    """
    (other,) = {0, 1} - {budget}
    cost, aim = problem.costs[:, other], problem.costs[:, budget].astype(np.float64)
    single, _ = problem.single(cost, aim, int(problem.rooms[other]))
    if single.smallest_cost > single.room:
        return None
    return round(allocate_globally(single).loss)


def _repaired(problem: JointProblem, rows: Ints) -> Ints | None:
    """Make an allocation fit by the changes of single layers that lose least for what they save."""
    unit = np.maximum(problem.rooms, 1).astype(np.float64)
    cost, room = problem.costs / unit, problem.rooms / unit
    rows = rows.copy()
    for _ in range(4 * len(rows)):
        if problem.fits(rows):
            return rows
        over = cost[rows].sum(axis=0) - room
        own = rows[problem.layer]
        after = np.maximum(over + cost - cost[own], 0.0).sum(axis=1)
        saved = np.maximum(over, 0.0).sum() - after
        worse = np.maximum(problem.losses - problem.losses[own], 0.0)
        rate = np.full(len(worse), np.inf)
        np.divide(worse, saved, out=rate, where=saved > 1e-15)
        at = int(np.argmin(rate))
        if not np.isfinite(rate[at]):
            return None
        rows[problem.layer[at]] = at
    return None


def _filled(problem: JointProblem, rows: Ints) -> Ints:
    """Spend the remaining rooms greedily, each time on the layer change that gains most."""
    rows = rows.copy()
    while True:
        left = problem.rooms - problem.costs[rows].sum(axis=0)
        own = rows[problem.layer]
        gain = problem.losses[own] - problem.losses
        gain[((problem.costs - problem.costs[own]) > left).any(axis=1)] = -1.0
        at = int(np.argmax(gain))
        if gain[at] <= 0.0:
            return rows
        rows[problem.layer[at]] = at


def _within_each(problem: JointProblem) -> list[Ints]:
    """Return the best allocation for each budget alone that fits into the other rooms too."""
    found = []
    for budget, room in enumerate(problem.rooms.tolist()):
        single, fronts = problem.single(problem.costs[:, budget], problem.losses, room)
        chosen = allocate_globally(single).chosen
        rows = np.array([front[i] for front, i in zip(fronts, chosen, strict=True)])
        if problem.fits(rows):
            found.append(rows)
    return found


def _integer_program(
    problem: JointProblem, dual: Dual, best: Ints | None
) -> tuple[Ints | None, float]:
    """Return an allocation better than `best`, if there is one, and a bound on all allocations."""
    loss = np.inf if best is None else float(problem.losses[best].sum())
    scale = float(np.maximum.reduceat(problem.losses, problem.start).sum())
    if best is not None and loss - dual.bound <= max(GOOD_ENOUGH * loss, ROUNDING * scale):
        return None, dual.bound
    open_rows = np.flatnonzero(dual.reduced <= (loss - dual.bound) + ROUNDING * scale)
    for shrink in (1.0, TIGHTER):
        rows, proven = solve_program(problem, open_rows, shrink)
        if shrink == 1.0:
            bound = proven - ROUNDING * scale
        if rows is None or not problem.fits(rows):
            continue
        better = float(problem.losses[rows].sum()) < loss
        return (rows if better else None), bound
    return None, bound
