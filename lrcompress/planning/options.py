"""Options of a plan besides its budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from math import isfinite

from lrcompress.errors import PlanError
from lrcompress.messages import shown
from lrcompress.metrics import METRICS
from lrcompress.network.other_weights import OTHER_FORMATS
from lrcompress.number_formats import parse_format
from lrcompress.planning.allocators import ALLOCATORS
from lrcompress.planning.network_time import NetworkTime
from lrcompress.profiling.profile import Profile
from lrcompress.structures import STRUCTURES


@dataclass(frozen=True)
class PlanOptions:
    """Options of a plan. Patterns are globs over layer names, or dotted prefixes of them."""

    allocator: str | None = None  # None: "global" if layers' losses compare, else "uniform"
    metric: str | None = None  # of the fits; None: the profile's
    loss_metric: str | None = None  # of the curves that predict the losses; None: `metric`
    corrections: Mapping[str, float] = field(default_factory=dict)  # layer -> factor on its losses
    multiple_of: int | None = None  # step of the ranks; None: see `default_ranks`
    min_rank: int = 1
    structures: tuple[str, ...] = ()  # allowed ones; empty: all that the profile has curves of
    formats: tuple[str, ...] = ()  # allowed number formats; empty: see `allowed_formats`
    others: str | None = None  # format of weights that no layer holds; None: see `others_choices`
    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    provider: str = "cpu"  # for latency lookups
    rows: int = 128  # of a layer in one call, for latency lookups
    latency_table: str = ""  # a file of calibrate-latency; "": the package's own
    network_time: NetworkTime | None = None  # None: the layers' times are their FLOPs
    bytes_per_param: int = 4  # in the precision of the export
    overhead_bytes: int = 0  # of the file besides its tensors

    def __post_init__(self) -> None:
        for option, value, least, most in (
            ("multiple_of", self.multiple_of, 1, 2**31),
            ("min_rank", self.min_rank, 1, 2**31),
            ("rows", self.rows, 1, 2**31),
            ("bytes_per_param", self.bytes_per_param, 1, 16),
            ("overhead_bytes", self.overhead_bytes, 0, 2**62),
        ):
            if value is not None and not least <= value <= most:
                raise PlanError(f"{option} must be from {least} to {most}, not {value}")
        for kind, names, accepted in (
            ("structure", self.structures, [*STRUCTURES]),
            ("allocator", (self.allocator,), [*ALLOCATORS]),
            ("format of other weights", (self.others,), [*OTHER_FORMATS]),
            ("metric", (self.metric, self.loss_metric), [*METRICS]),
        ):
            for name in names:
                if name is not None and name not in accepted:
                    raise PlanError(f"{kind} {shown(name)} is not one of {', '.join(accepted)}")
        for text in self.formats:
            parse_format(text)
        for layer, factor in self.corrections.items():
            if not (isfinite(factor) and factor > 0):
                raise PlanError(f"the correction of {layer} must be positive, not {factor}")

    def resolved(self, profile: Profile) -> PlanOptions:
        """Return the options with the metric and the allocator filled in.

        Only a metric that uses the sensitivity of the output puts the losses of all layers in one
        unit. Without it, adaptive ranks are worse than uniform ones.
        """
        metric = self.metric or profile.metric
        if metric not in METRICS:
            raise PlanError(f"metric {shown(metric)} of the profile is unknown; profile again")
        comparable = METRICS[self.loss_metric or metric].needs_outputs
        allocator = self.allocator or ("global" if comparable else "uniform")
        return replace(self, metric=metric, allocator=allocator)

    @property
    def curves(self) -> str:
        """The metric whose loss curves predict the losses. Requires resolved options."""
        assert self.metric is not None
        return self.loss_metric or self.metric
