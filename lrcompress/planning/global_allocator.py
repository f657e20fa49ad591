"""Global allocator: chooses the ranks of all layers jointly, proven optimal where possible.

A relaxation gives a bound, and a greedy repair gives a first allocation. An exact search then
covers the few choices that the remaining gap leaves open.
"""

from __future__ import annotations

import numpy as np

from lrcompress.planning.knapsack_core import solve_core
from lrcompress.planning.problem import Allocation, Ints, Problem
from lrcompress.planning.relaxation import Table, relax

# Partial allocations kept: a narrow search closes most of the gap; wide ones mostly prove it
WIDTHS = (64, 1024, 8192)
ROUNDING = 1e-10  # relative to the summed losses and prices
GOOD_ENOUGH = (1e-9, 1e-6, 1e-5)  # relative proven gap at which the search stops before each


def allocate_globally(problem: Problem) -> Allocation:
    """Minimise the total loss within the room, with a proven lower bound."""
    if not problem.costs:
        return problem.allocation((), lower_bound=0.0)
    table = Table.of(problem)
    relaxed = relax(table, problem.room)
    chosen = _fill(table, relaxed.chosen, problem.room)
    best = problem.allocation((chosen - table.start).tolist())
    if relaxed.multiplier == 0.0:  # every layer's best choice fits
        return problem.allocation(best.chosen, lower_bound=best.loss)

    excess, proven = max(best.loss - relaxed.bound, 0.0), 0.0
    for width, good_enough in zip(WIDTHS, GOOD_ENOUGH, strict=True):
        if excess - proven <= good_enough * best.loss:
            break
        solved = solve_core(table, relaxed, room=problem.room, excess=excess, width=width)
        excess, proven = solved.excess, max(proven, solved.proven)
        if solved.chosen is not None:
            best = problem.allocation((solved.chosen - table.start).tolist())
    bound = max(relaxed.bound + proven, 0.0)
    # The relaxation's bound is a difference of sums of this size
    slack = ROUNDING * (best.loss + relaxed.multiplier * problem.room)
    assert bound <= best.loss + slack, f"bound {bound} above the loss {best.loss}"
    return problem.allocation(best.chosen, lower_bound=best.loss if bound > best.loss else bound)


def _fill(table: Table, chosen: Ints, room: int) -> Ints:
    """Spend the remaining room greedily, each time on the layer change that gains most."""
    chosen = chosen.copy()
    while True:
        left = room - int(table.cost[chosen].sum())
        gain = table.loss[chosen][table.layer] - table.loss
        gain[table.cost - table.cost[chosen][table.layer] > left] = -1.0
        best = int(np.argmax(gain))
        if gain[best] <= 0.0:
            return chosen
        chosen[table.layer[best]] = best
