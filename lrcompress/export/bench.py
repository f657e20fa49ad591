"""Compare the latency of ONNX models on the same inputs, in interleaved runs in one process.

Interleaving matters: a temporary slowdown of the machine affects every model, so the ratio of two
models is stable even where their latencies are not.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence

import numpy as np

from lrcompress.errors import DataError
from lrcompress.export.bench_report import (
    BenchReport,
    BenchSettings,
    BenchTarget,
    Footprint,
    Latency,
    Ratio,
)
from lrcompress.export.bench_sizes import Cell, TimedGraph, cells_to_time, file_axes
from lrcompress.export.memory import PeakMemory, peak_memory
from lrcompress.export.random_feeds import Feed, InputMaker, graph_inputs, id_limits, make_feed
from lrcompress.export.session import (
    EXECUTION_PROVIDERS,
    ProviderName,
    file_bytes,
    onnxruntime_for,
    open_session,
)
from lrcompress.export.timing import clock_for, latency_ratio, take_turns, timed_call, wall_clock
from lrcompress.hardware import processor_name
from lrcompress.progress import SILENT, Progress

__all__ = ["BenchReport", "BenchSettings", "BenchTarget", "bench", "device_name"]

DEFAULTS = BenchSettings()


def bench(
    targets: Sequence[BenchTarget],
    settings: BenchSettings = DEFAULTS,
    *,
    input_maker: InputMaker | None = None,
    progress: Progress = SILENT,
) -> BenchReport:
    """Measure latency over batch x length, throughput, file size and peak memory of each target.

    The first target is the reference of the ratios. Without an `input_maker`, inputs are generated
    from the graph: ids below 100 and below the size of the table they index, masks of ones.

    Raises:
        ModelError: a file cannot be read.
        ProviderUnavailable: the provider cannot run here.
        DataError: inputs cannot be generated.
    """
    _check(targets, settings)
    opened = [_open(target, settings) for target in targets]
    cells = cells_to_time(opened, settings)
    clock = clock_for(settings.provider, settings.threads) if settings.cpu_time else wall_clock
    latencies: list[Latency] = []
    ratios: list[Ratio] = []
    with progress.stage("bench", len(cells) * (settings.runs + settings.warmup)) as step:
        for cell in cells:
            batch, length = cell
            feeds = [_feed(one, cell, settings.seed, input_maker) for one in opened]
            calls = [
                timed_call(one.name, one.session, feed, settings.provider)
                for one, feed in zip(opened, feeds, strict=True)
            ]
            times_ms = take_turns(
                calls, runs=settings.runs, warmup=settings.warmup, advance=step.advance, clock=clock
            )  # (targets, runs)
            rows = batch * (length or 1)
            for one, times in zip(opened, times_ms, strict=True):
                p50_ms, p90_ms = map(float, np.percentile(times, (50, 90)))
                per_s = rows / p50_ms * 1e3
                latencies.append(Latency(one.name, batch, length, p50_ms, p90_ms, per_s))
                if one is not opened[0]:
                    ratio = latency_ratio(times, times_ms[0], seed=settings.seed)
                    ratios.append(Ratio(one.name, opened[0].name, batch, length, *ratio))
    largest = max(cells, key=lambda cell: cell[0] * (cell[1] or 1))
    footprints = tuple(
        _footprint(one, _feed(one, largest, settings.seed, input_maker), settings) for one in opened
    )
    return BenchReport(
        provider=settings.provider,
        execution_provider=EXECUTION_PROVIDERS[settings.provider][0],
        device=device_name(settings.provider),
        onnxruntime=onnxruntime_for(settings.provider).__version__,
        threads=settings.threads,
        runs=settings.runs,
        row="example" if cells[0][1] is None else "token",
        latencies=tuple(latencies),
        ratios=tuple(ratios),
        footprints=footprints,
    )


def device_name(provider: ProviderName) -> str:
    """Return the name of the processor or of the first GPU."""
    if provider != "cpu":
        if shutil.which("nvidia-smi") is None:
            return "unknown GPU"
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader", "--id=0"]
        answer = subprocess.run(query, capture_output=True, text=True, check=False)
        return answer.stdout.strip() or "unknown GPU"
    return processor_name()


def _check(targets: Sequence[BenchTarget], settings: BenchSettings) -> None:
    names = [target.name for target in targets]
    if not targets or len(set(names)) != len(names):
        raise DataError("bench: give at least one model, each under a different name")
    for name, values in (("batches", settings.batches), ("lengths", settings.lengths)):
        if values is not None and (not values or min(values) < 1):
            raise DataError(f"bench: {name} must be whole numbers from 1; got {values}")
    if settings.runs < 1 or settings.warmup < 0:
        raise DataError(f"bench: runs must be at least 1 and warmup 0; got {settings}")


def _open(target: BenchTarget, settings: BenchSettings) -> TimedGraph:
    session = open_session(target.path, settings.provider, threads=settings.threads, fastest=True)
    known = file_axes(target.path)
    inputs = graph_inputs(session.get_inputs(), id_limits(target.path), known)
    return TimedGraph(target.name, target.path, session, inputs, known)


def _feed(one: TimedGraph, cell: Cell, seed: int, maker: InputMaker | None) -> Feed:
    if maker is None:
        return make_feed(one.inputs, *cell, seed)
    feed = maker(one.inputs, *cell)
    missing = [given.name for given in one.inputs if given.name not in feed]
    if missing:
        raise DataError(f"{one.name}: the given inputs lack {missing[0]}; add it")
    return {given.name: feed[given.name].astype(given.dtype) for given in one.inputs}


def _footprint(one: TimedGraph, feed: Feed, settings: BenchSettings) -> Footprint:
    peak = PeakMemory(None, None)
    if settings.measure_memory:
        peak = peak_memory(one.path, settings.provider, feed, threads=settings.threads)
    size = file_bytes(one.path)
    return Footprint(one.name, str(one.path), size, peak.resident_bytes, peak.device_bytes)
