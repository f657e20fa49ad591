"""Timed, interleaved runs of sessions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter_ns, thread_time_ns
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lrcompress.errors import VerifyError
from lrcompress.export.random_feeds import Feed
from lrcompress.export.session import ProviderName, Session
from lrcompress.messages import one_line

_RESAMPLES = 1000
Clock = Callable[[], int]  # returns nanoseconds
wall_clock: Clock = perf_counter_ns


def clock_for(provider: ProviderName, threads: int | None) -> Clock:
    """Return the CPU time of this thread if it does all the work, else the time on the wall.

    CPU time leaves out the time in which other processes had the core: on a busy machine they
    interrupt long calls far more often than short ones, which falsifies even ratios of medians.
    """
    return thread_time_ns if provider == "cpu" and threads == 1 else wall_clock


def take_turns(
    calls: Sequence[Callable[[], None]],
    *,
    runs: int,
    warmup: int,
    advance: Callable[[], None],
    clock: Clock = wall_clock,
) -> NDArray[np.float64]:
    """Run the calls in turn; return the milliseconds of every run of every call: (calls, runs)."""
    for _ in range(warmup):
        for call in calls:
            call()
        advance()
    times_ms = np.empty((len(calls), runs))  # (calls, runs)
    for run in range(runs):
        # Every other round is reversed, so that no call always follows the same one.
        for index in range(len(calls)) if run % 2 == 0 else reversed(range(len(calls))):
            start = clock()
            calls[index]()
            times_ms[index, run] = (clock() - start) / 1e6
        advance()
    return times_ms


def timed_call(
    name: str, session: Session, feed: Feed, provider: ProviderName
) -> Callable[[], None]:
    """Return a function that runs the session once, without copies to and from a GPU."""
    binding = None if provider == "cpu" else bound(session, feed, "cuda")

    def call() -> None:
        try:
            if binding is None:
                session.run(None, feed)
            else:
                session.run_with_iobinding(binding)
                binding.synchronize_outputs()
        except Exception as error:  # ONNX Runtime's exceptions share no base below Exception
            shapes = ", ".join(f"{key} {list(array.shape)}" for key, array in feed.items())
            raise VerifyError(f"{name}: does not run with {shapes}: {one_line(error)}") from error

    return call


def bound(session: Session, feed: Feed, device: str) -> Any:
    """Return an IO binding: inputs copied to the device once, outputs allocated on it."""
    binding = session.io_binding()
    for name, array in feed.items():
        binding.bind_cpu_input(name, array)
    for output in session.get_outputs():
        binding.bind_output(output.name, device)
    binding.synchronize_inputs()
    return binding


def latency_ratio(
    times_ms: NDArray[np.float64], reference_ms: NDArray[np.float64], *, seed: int = 0
) -> tuple[float, float, float]:
    """Return the ratio of medians and its 95 % bootstrap interval.

    Rounds are resampled as pairs, because a disturbance of a round affects both.
    """
    rounds = len(times_ms)
    drawn = np.random.default_rng(seed).integers(0, rounds, (_RESAMPLES, rounds))
    ratios = np.median(times_ms[drawn], axis=1) / np.median(reference_ms[drawn], axis=1)
    low, high = (float(value) for value in np.percentile(ratios, (2.5, 97.5)))
    return float(np.median(times_ms) / np.median(reference_ms)), low, high
