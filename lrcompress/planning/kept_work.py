"""Warning for plans that save parameters or bytes but hardly any FLOPs."""

from __future__ import annotations

from lrcompress.planning.budget import Budget
from lrcompress.planning.totals import Totals
from lrcompress.profiling.profile import Profile

MUCH_WORK, FEW_PARAMS = 0.85, 0.7  # shares kept of the FLOPs, and of what the budget counts


def kept_work(
    profile: Profile, budget: Budget, dense: Totals, kept: Totals, *, counted: float
) -> tuple[str, ...]:
    """Return a warning if a plan makes a network smaller but hardly faster.

    counted: share kept of what the budget counts. Convolutional networks have most weights in
    late layers and most FLOPs in early ones, where feature maps are large. Embeddings have
    weights but no FLOPs.
    """
    if budget.kind not in ("params", "bytes") or not profile.examples:
        return ()
    work = kept.flops_per_example / dense.flops_per_example if dense.flops_per_example else 0.0
    if work <= MUCH_WORK or counted > FEW_PARAMS:
        return ()
    return (
        f"the plan keeps {100 * counted:.0f} % of the {budget.kind} but {100 * work:.0f} % of the "
        f"work: smaller, hardly faster; for speed use --budget flops={_suggested(counted)}%",
    )


def _suggested(counted: float) -> int:
    return max(round(100 * counted), 1)
