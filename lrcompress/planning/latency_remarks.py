"""What a plan's warnings say of its latency: measured here, or how it was estimated."""

from __future__ import annotations

from collections.abc import Sequence

from lrcompress.planning.choices import Choice
from lrcompress.planning.limit import Limit, Spent
from lrcompress.planning.request import PlanRequest

UNMEASURED = (
    "the network was not timed here: what no plan changes (attention, norms) counts by its FLOPs, "
    "and the layers by a table of measurements"
)


def allowed_ratio(request: PlanRequest, limit: Limit) -> float:
    """Return the latency over dense of the whole network that a budget of latency allows.

    In the scope "compressible" it allows a share of the layers' time, besides all the rest.
    """
    dense = request.dense.of("latency")
    return (dense - limit.dense + limit.most) / dense


def latency_remarks(
    request: PlanRequest, choices: Sequence[Choice], spent: Sequence[Spent]
) -> tuple[str, ...]:
    """Return a remark on the latency if a budget limits it."""
    limit = next((one for one in request.limits if one.budget.kind == "latency"), None)
    if limit is None:
        return ()
    known = request.options.network_time
    if known is None:
        return (UNMEASURED,)
    layers = request.profile.layers
    structures = {
        layer.name: choice.structure for layer, choice in zip(layers, choices, strict=True)
    }
    ratio, allowed = known.measured(structures), allowed_ratio(request, limit)
    where = f" ({known.measured_at})" if known.measured_at else ""
    if ratio is None:
        cost = next(one.cost for one in spent if one.budget.kind == "latency")
        estimate = allowed + (cost - limit.most) / request.dense.of("latency")
        return (f"latency: {estimate:.1%} of dense, estimated, of {allowed:.1%} allowed{where}",)
    return (f"latency: {ratio:.1%} of dense, measured here{where}, of {allowed:.1%} allowed",)
