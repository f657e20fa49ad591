"""Times the dense network and planned ones during the plan stage."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

from torch import nn

from lrcompress.checkpoint import CheckpointStore, Entry
from lrcompress.compression.arbitrary_factors import arbitrary_factors
from lrcompress.errors import DataError, ExportError, ModelError
from lrcompress.export.export_onnx import ExportReport, export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.network_latency import TimingSettings, latency_over, time_network
from lrcompress.export.session import ProviderUnavailable
from lrcompress.json_dataclasses import from_json, to_json
from lrcompress.network.batches import Batch
from lrcompress.number_formats import GridFormat
from lrcompress.pipeline.latency_promise import LatencyPromise
from lrcompress.pipeline.options import RunOptions
from lrcompress.planning.budget import Budget
from lrcompress.planning.network_time import NetworkTime, structures_digest
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import Profile
from lrcompress.structures import in_format

# Operators of which a graph holds one for weights that were rounded
DYNAMIC = {"DynamicQuantizeLinear", "MatMulInteger", "DynamicQuantizeMatMul"}
STORED = {"MatMulNBits", "DequantizeLinear", "GatherBlockQuantized"}
KIND = "latency"  # of the entries in the store

log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class DenseGraph:
    """The dense network's ONNX file in a scratch folder, exported when it is first needed."""

    module: nn.Module
    example: Callable[[], Batch]
    options: ExportOptions
    folder: Path

    @cached_property
    def report(self) -> ExportReport:
        path = self.folder / "dense.onnx"
        return export_onnx(self.module, self.example(), path, self.options)

    @property
    def path(self) -> Path:
        return Path(self.report.path)


@dataclass(eq=False)
class PlanTimer:
    """Makes plans under a latency budget that keep their promise (see LatencyPromise).

    What was measured is kept in `store`, so that a killed run makes the same plan again.
    """

    dense: DenseGraph
    profile: Profile
    time: NetworkTime
    settings: TimingSettings
    store: CheckpointStore

    @cached_property
    def promise(self) -> LatencyPromise:
        return LatencyPromise(self.profile, self.measure)

    def corrected(self, budgets: Sequence[Budget], asked: PlanOptions) -> PlanOptions:
        """Return the options with the network's time, corrected by plans of the profile alone."""

        def make(time: NetworkTime) -> Plan:
            return plan(self.profile, budgets, replace(asked, network_time=time))

        return replace(
            asked, network_time=self.promise.keep(make, self.time, fills=True).options.network_time
        )

    def kept(self, made: Plan) -> Plan:
        """Return the plan if it keeps its promise, else one made again with its options."""
        start = made.options.network_time
        assert start is not None

        def make(time: NetworkTime) -> Plan:
            if time is start:
                return made
            return plan(self.profile, made.budgets, replace(made.options, network_time=time))

        return self.promise.keep(make, start, fills=False)

    def measure(self, planned: Plan) -> float | None:
        """Return the latency of the planned network over the dense one, on the dense example."""
        key = structures_digest(planned.structures)
        known = self.store.get(KIND, key)
        if known is not None:
            ratio: float | None = known.values["ratio"]
            return ratio
        path = self.dense.folder / "planned.onnx"
        with arbitrary_factors(self.dense.module, planned):
            report = export_onnx(self.dense.module, self.dense.example(), path, self.dense.options)
        lacks = lacking(planned, report.node_counts)
        if lacks:
            log.warning("the plan was not timed: its graph holds no %s", lacks)
            return None
        ratio = latency_over(self.dense.path, path, self.dense.example(), self.settings)
        self.store.put(KIND, key, Entry({"ratio": ratio}))
        return ratio


def lacking(planned: Plan, nodes: Mapping[str, int]) -> str:
    """Return the operators that the plan's formats need and the graph lacks; "" if none.

    A graph without them multiplies by float32 weights, whose time says nothing of the formats.
    """
    formats = {one for x in planned.layers for one in in_format(x.structure)[1]}
    grids = [one for one in formats if isinstance(one, GridFormat)]
    needs = [DYNAMIC for one in grids if one.activations]
    needs += [STORED for one in grids if not one.activations]
    return next((" or ".join(sorted(any_of)) for any_of in needs if not any_of & {*nodes}), "")


def plan_timer(
    dense: DenseGraph, profile: Profile, options: RunOptions, store: CheckpointStore
) -> PlanTimer | None:
    """Time the dense network if a budget limits the latency; None if it cannot be timed here.

    The plan then counts by FLOPs, and its warnings say so.
    """
    if not options.time_network or all(one.kind != "latency" for one in options.budgets):
        return None
    settings = TimingSettings(options.provider, options.plan.rows, options.threads)
    entry = store.get(KIND)
    if entry is not None:
        time: NetworkTime | None = from_json(NetworkTime, dict(entry.values), KIND, DataError)
    else:
        layers = [layer.spec for layer in profile.layers]
        try:
            time = time_network(dense.path, dense.example(), layers, settings)
        except (ExportError, ModelError, DataError, ProviderUnavailable) as error:
            if options.to_onnx and isinstance(error, ExportError):
                raise
            log.warning("the network was not timed: %s", error)
            return None
        if time is not None:
            store.put(KIND, "", Entry(to_json(time)))
    return None if time is None else PlanTimer(dense, profile, time, settings, store)
