"""Time a dense network's layers, and a compressed network against the dense one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrcompress.errors import DataError
from lrcompress.export.node_times import LayerTimes, time_layers
from lrcompress.export.random_feeds import NUMPY_DTYPES, Feed
from lrcompress.export.session import ProviderName, Session, open_session
from lrcompress.export.timing import clock_for, take_turns, timed_call
from lrcompress.layers import LayerSpec
from lrcompress.network.batches import Batch, batch_size, examples_of, is_divisible
from lrcompress.planning.network_time import NetworkTime

RUNS, WARMUP = 40, 3
SECONDS = 8.0  # of all timed runs of a pair, about; slow networks get fewer runs
FEWEST_RUNS = 7


@dataclass(frozen=True)
class TimingSettings:
    """Where and with which input sizes networks are timed.

    rows: of a layer in one call, at which the example is cut. threads: per operator; None leaves
    it to ONNX Runtime, as in deployment.
    """

    provider: ProviderName = "cpu"
    rows: int = 128
    threads: int | None = None


DEFAULTS = TimingSettings()


def time_network(
    path: Path, batch: Batch, layers: Sequence[LayerSpec], settings: TimingSettings = DEFAULTS
) -> NetworkTime | None:
    """Return the times of a dense network, exported to `path`; None off the CPU.

    On a GPU, ONNX Runtime's profile shows when a kernel was started, not how long it took. A layer
    whose weight was not found in the graph takes the time of its FLOPs at the rate of the others.

    Raises:
        ModelError: ONNX Runtime cannot load the file.
        DataError: the batch does not fit the graph.
    """
    if settings.provider != "cpu":
        return None
    session = open_session(path, threads=settings.threads, fastest=True)
    feed = feed_of(session, cut(batch, settings.rows))
    found = time_layers(path, feed, layers, threads=settings.threads)
    threads = f"{settings.threads or 'default'} threads"
    where = ", ".join(" x ".join(map(str, array.shape)) for array in [*feed.values()][:1])
    return NetworkTime(*_completed(found, layers), f"{where} on cpu, {threads}")


def _completed(found: LayerTimes, layers: Sequence[LayerSpec]) -> tuple[dict[str, float], float]:
    """Give the unmatched layers a part of the rest by their FLOPs; a lookup keeps none."""
    layers_ms, rest_ms = dict(found.layers_ms), found.rest_ms
    flops = {spec.name: spec.flops_per_row for spec in layers}
    matched = sum(flops[name] for name in layers_ms if name in flops)
    rate = sum(layers_ms.values()) / matched if matched else 0.0
    for name in found.unmatched:
        taken = min(rate * flops[name], rest_ms)
        layers_ms[name] = taken
        rest_ms -= taken
    return layers_ms, rest_ms


def latency_over(dense: Path, other: Path, batch: Batch, settings: TimingSettings) -> float:
    """Return the latency of one graph over that of another, timed in turns on the same input.

    The shortest runs are compared, since other processes only add time.

    Raises:
        ModelError: a file cannot be loaded.
        DataError: the batch does not fit a graph.
    """
    provider = settings.provider
    sessions = [
        open_session(path, provider, threads=settings.threads, fastest=True)
        for path in (dense, other)
    ]
    feeds = [feed_of(session, cut(batch, settings.rows)) for session in sessions]
    calls = [
        timed_call(name, session, feed, provider)
        for name, session, feed in zip(("dense", "planned"), sessions, feeds, strict=True)
    ]
    clock = clock_for(provider, settings.threads)
    few = take_turns(calls, runs=2, warmup=WARMUP, advance=_nothing)
    runs = int(SECONDS * 1e3 / max(float(few.min(axis=1).sum()), 1e-3))
    runs = min(RUNS, max(FEWEST_RUNS, runs))
    shortest = take_turns(calls, runs=runs, warmup=0, advance=_nothing, clock=clock).min(axis=1)
    return float(shortest[1] / shortest[0])


def cut(batch: Batch, rows: int) -> Batch:
    """Return the first examples of a batch, about `rows` positions in all.

    Positions are the second axis of the integer inputs; other examples count once.
    """
    if not is_divisible(batch):
        return batch
    lengths = [
        tensor.shape[1]
        for tensor in batch.values()
        if tensor.dim() == 2 and not tensor.is_floating_point()
    ]
    examples = round(rows / max(lengths, default=1))
    return examples_of(batch, 0, min(max(examples, 1), batch_size(batch)))


def feed_of(session: Session, batch: Batch) -> Feed:
    """Return the batch as the arrays that a graph takes.

    Raises:
        DataError: the batch lacks an input, or the graph takes a dtype that NumPy lacks.
    """
    feed = {}
    for given in session.get_inputs():
        if given.name not in batch or given.type not in NUMPY_DTYPES:
            raise DataError(
                f"the graph takes an input {given.name} of {given.type}, which the example lacks; "
                "export it anew"
            )
        feed[given.name] = np.asarray(batch[given.name].cpu().numpy(), NUMPY_DTYPES[given.type])
    return feed


def _nothing() -> None:
    """No progress is shown."""
