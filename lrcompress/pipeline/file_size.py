"""Plans under a budget of bytes whose file fits it, as measured on the file.

A plan counts the bytes of its weights. The rest of a file (nodes, names, scales that are cast) is
known once a graph of the plan's structures is written, with arbitrary factors.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from lrcompress.compression.arbitrary_factors import arbitrary_factors
from lrcompress.errors import BudgetError
from lrcompress.export.export_onnx import export_onnx
from lrcompress.formats.plan_json import plan_as
from lrcompress.pipeline.plan_timer import DenseGraph
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import Profile

ROUNDS = 3  # of planning again


@dataclass(frozen=True, eq=False)
class FileSize:
    """Measures the files of plans, and plans again until one fits."""

    dense: DenseGraph
    profile: Profile

    def options(self, budgets: Sequence[Budget], asked: PlanOptions, least: int) -> PlanOptions:
        """Return the options with the overhead of the plan that they lead to.

        least: the overhead of the dense network's file, with which the first plan is made.

        Raises:
            BudgetError: no plan meets the budgets.
        """
        first = replace(asked, overhead_bytes=least)
        made = plan(self.profile, budgets, first)
        return replace(asked, overhead_bytes=self.overhead(made))

    def overhead(self, made: Plan) -> int:
        """Return the bytes of the plan's file beyond those that it counts for the weights."""
        path = self.dense.folder / "sized.onnx"
        with arbitrary_factors(self.dense.module, made):
            report = export_onnx(self.dense.module, self.dense.example(), path, self.dense.options)
        return max(report.bytes - (made.bytes - made.options.overhead_bytes), 0)

    def fitted(self, made: Plan) -> Plan:
        """Return the plan with the overhead of its own file, or one made again that fits.

        Raises:
            BudgetError: no plan fits.
        """
        for _ in range(1 + ROUNDS):
            options = replace(made.options, overhead_bytes=self.overhead(made))
            bound = made.lower_bound, made.proven_for
            counted = plan_as(self.profile, made.budgets, options, made.structures, bound=bound)
            if counted.within_budget:
                return counted
            made = plan(self.profile, made.budgets, options)
        raise BudgetError(
            f"budget {' and '.join(map(str, made.budgets))}: the files of plans that should fit "
            "are larger than allowed; raise the budget a little"
        )
