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
from lrcompress.pipeline.plan_timer import DenseGraph
from lrcompress.pipeline.provenance import with_provenance
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import Profile

ROUNDS = 8  # of planning again
STEP = 2**10  # overheads are rounded up to multiples of it, so that plans soon agree on one
STEPS_OF_LIMIT = 2**12  # or to multiples of this fraction of the budget


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
        made = plan(self.profile, budgets, replace(asked, overhead_bytes=least))
        return replace(asked, overhead_bytes=self.overhead(made))

    def overhead(self, made: Plan) -> int:
        """Return the bytes of the plan's file beyond those of the weights, rounded up."""
        path = self.dense.folder / "sized.onnx"
        options = with_provenance(self.dense.options, made)
        with arbitrary_factors(self.dense.module, made):
            report = export_onnx(self.dense.module, self.dense.example(), path, options)
        beyond = max(report.bytes - (made.bytes - made.options.overhead_bytes), 0)
        step = _step(made)
        return -(-beyond // step) * step

    def fitted(self, made: Plan) -> Plan:
        """Return the plan, or one made again, whose own overhead is not above the one it counts.

        Each plan has less room for weights than the one before, and so may take more nodes. From
        the second one on it counts more than that took, twice as much more each time.

        Raises:
            BudgetError: no plan fits.
        """
        for again in range(1 + ROUNDS):
            beyond = self.overhead(made)
            if beyond <= made.options.overhead_bytes:
                return made
            counted = beyond + (2**again - 1) * _step(made)
            made = plan(self.profile, made.budgets, replace(made.options, overhead_bytes=counted))
        raise BudgetError(
            f"budget {' and '.join(map(str, made.budgets))}: the files of plans that should fit "
            "are larger than allowed; raise the budget a little"
        )


def _step(made: Plan) -> int:
    return max(STEP, made.bytes // STEPS_OF_LIMIT)
