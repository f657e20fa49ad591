"""Total costs of a whole model: the parts that a plan changes and the fixed parts."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from lrcompress.planning.budget import BudgetKind
from lrcompress.planning.choices import Choice
from lrcompress.profiling.profile import Profile
from lrcompress.structures import Dense


@dataclass(frozen=True)
class Totals:
    """Total costs. FLOPs are whole numbers, so that sums do not depend on their order."""

    params: int
    flops_per_example: float
    bytes: int
    latency_flops: float

    def of(self, kind: BudgetKind) -> int:
        if kind == "params":
            return self.params
        if kind == "latency":
            return int(self.latency_flops)
        return int(self.flops_per_example) if kind == "flops" else self.bytes

    def plus(self, choices: Iterable[Choice]) -> Totals:
        params, flops, size = self.params, self.flops_per_example, self.bytes
        time = self.latency_flops
        for choice in choices:
            params += choice.params
            flops += choice.flops_per_example
            size += choice.bytes
            time += choice.latency_flops
        return Totals(params, flops, size, time)


NOTHING = Totals(0, 0.0, 0, 0.0)


def fixed_totals(profile: Profile, *, bytes_per_param: int, overhead_bytes: int) -> Totals:
    """Return the totals without the profiled weights: biases, norms, buffers, attention."""
    specs = [layer.spec for layer in profile.layers]
    changeable = sum(spec.weight_params for spec in specs)
    flops = sum(
        float(round(Dense().flops_per_row(layer.spec) * layer.rows_per_example))
        for layer in profile.layers
    )
    params = profile.total_params - changeable
    others = max(float(round(profile.total_flops_per_example)) - flops, 0.0)
    return Totals(
        params=params,
        flops_per_example=others,
        bytes=params * bytes_per_param + buffer_bytes(profile) + overhead_bytes,
        latency_flops=others,
    )


def buffer_bytes(profile: Profile) -> int:
    """Return the bytes that the model stores besides parameters, in the stored dtype.

    The profile counts both together. The parameters are assumed to have the widest dtype that fits.
    """
    for width in (8, 4, 2, 1):
        rest = profile.total_bytes - width * profile.total_params
        if rest >= 0:
            return rest
    return 0
