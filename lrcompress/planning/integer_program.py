"""The integer program of an allocation under several budgets, solved by HiGHS."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp

from lrcompress.planning.joint_problem import JointProblem
from lrcompress.planning.problem import Floats, Ints

MOST_NODES = 2000  # of the branch and bound: a limit of time would depend on the machine
GOOD_ENOUGH = 1e-6  # relative proven gap at which the search stops


def solve_program(problem: JointProblem, rows: Ints, shrink: float) -> tuple[Ints | None, float]:
    """Return the best allocation among some rows, and the bound that the solver proved.

    rows: with at least one of each layer. shrink: factor on the rooms. The solver's tolerances may
    let the allocation exceed a room by about 1e-6 of it. The bound is infinite if nothing fits.
    """
    layer = problem.layer[rows]
    layers, at = np.unique(layer, return_inverse=True)
    assert len(layers) == len(problem.layers)  # the rows of the dual's optimum are open
    unit = np.maximum(problem.rooms, 1).astype(np.float64)
    costs = (problem.costs[rows] / unit).T
    losses = problem.losses[rows]
    scale: float = max(float(np.maximum.reduceat(losses, _starts(layer)).sum()), 1e-300) / 1e3
    one_each = (at[None, :] == np.arange(len(layers))[:, None]).astype(np.float64)
    with _silent():
        solved = milp(
            losses / scale,
            integrality=np.ones(len(rows)),
            bounds=Bounds(0, 1),
            constraints=[
                LinearConstraint(one_each, 1, 1),
                LinearConstraint(costs, -np.inf, shrink * problem.rooms / unit),
            ],
            options={"mip_rel_gap": GOOD_ENOUGH / 10, "node_limit": MOST_NODES},
        )
    proven = getattr(solved, "mip_dual_bound", None)
    bound = -np.inf if proven is None else float(proven) * scale
    if solved.status == 2:  # infeasible: every better allocation was excluded
        bound = np.inf
    if solved.x is None:
        return None, bound
    taken: Floats = solved.x.round()
    chosen = rows[taken > 0]
    if len(chosen) != len(layers) or not np.array_equal(problem.layer[chosen], layers):
        return None, bound
    return chosen, bound


def _starts(layer: Ints) -> Ints:
    return np.flatnonzero(np.r_[True, layer[1:] != layer[:-1]])


@contextmanager
def _silent() -> Iterator[None]:
    """Send to nowhere what the solver prints on the process's standard output.

    HiGHS in SciPy 1.17 prints a line for some solutions whatever its options say, and standard
    output is reserved for results.
    """
    sys.stdout.flush()
    try:
        kept = os.dup(1)
    except OSError:  # a process without standard output
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
