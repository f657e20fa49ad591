"""Latency of a file over the dense graph's, in paired runs of few seconds each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter

from benchmarks.bits.row import Timing
from lrcompress.export.bench_sizes import file_axes
from lrcompress.export.random_feeds import graph_inputs, has_free_length, id_limits, make_feed
from lrcompress.export.session import open_session
from lrcompress.export.timing import latency_ratio, take_turns, timed_call

BATCHES, LENGTH, THREADS = (1, 8), 128, (1, 2)
SECONDS = 4.0  # of each paired measurement
RUNS = (5, 60)  # at least, at most


def latency(dense: Path, file: Path) -> Iterator[Timing]:
    """Time every number of threads and batch size; the same inputs for both graphs."""
    known, limits = file_axes(dense), id_limits(dense)
    for threads in THREADS:
        sessions = [open_session(path, threads=threads, fastest=True) for path in (dense, file)]
        inputs = graph_inputs(sessions[0].get_inputs(), limits, known)
        length = LENGTH if has_free_length(inputs) else None
        for batch in BATCHES:
            feed = make_feed(inputs, batch, length, seed=0)
            calls = [
                timed_call(path.name, session, feed, "cpu")
                for path, session in zip((dense, file), sessions, strict=True)
            ]
            started = perf_counter()
            take_turns(calls, runs=1, warmup=1, advance=_nothing)
            round_s = (perf_counter() - started) / 2
            runs = min(max(round(SECONDS / round_s), RUNS[0]), RUNS[1])
            dense_ms, file_ms = take_turns(calls, runs=runs, warmup=0, advance=_nothing)
            ratio, low, high = latency_ratio(file_ms, dense_ms)
            yield Timing(batch, length, threads, ratio, low, high, float(min(dense_ms)))


def _nothing() -> None:
    pass
