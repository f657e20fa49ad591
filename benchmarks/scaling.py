"""Scaling of the plain BLAST fit: time against size and number of blocks, and memory.

    OMP_NUM_THREADS=1 python -m benchmarks.scaling [--seconds 240]

Square random weights of n rows, at half of the dense parameters, so that the rank grows with n.
Times are CPU seconds of one thread: for the start (a truncated SVD), and for a sweep (the median of
a few). Exponents are least-squares fits of log seconds on log n, and on log b. Sizes run from small
to large. A size that would exceed the allowed seconds, extrapolated from the sizes before, is left
out and reported. Memory: the growth of a fresh process's peak since before the weight was created,
including the weight, divided by the weight's size.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from itertools import islice
from pathlib import Path

import psutil
import torch

from benchmarks.machine import RESULTS, describe_machine, write_result
from benchmarks.structure_sections.request import Row
from lrcompress.structures.blast_fit.plain import fit_plain
from lrcompress.structures.blast_fit.spectral_start import spectral_start
from lrcompress.structures.blast_fit.sweeps import alternate

RESULT = RESULTS / "scaling.json"
KEPT = 0.5
SIZES, BLOCKS = (256, 512, 1024, 2048, 4096, 8192), 4
SIZE, ALL_BLOCKS = 1024, (1, 2, 4, 8, 16, 32)
SWEEPS = 5  # timed, after one that is not
MEMORY = ((2048, 4), (2048, 8), (4096, 2), (4096, 4), (4096, 8))  # n, blocks
MEMORY_BAR, MEMORY_SWEEPS = 6.0, 4  # sweeps: with momentum, which also needs the last factors


def rank_of(n: int, blocks: int) -> int:
    return int(KEPT * n * n / (2 * n + blocks**2))


def timed_fit(n: int, blocks: int, sweeps: int = SWEEPS) -> Row:
    weight = torch.randn(1, n, n, generator=torch.Generator().manual_seed(0)) / n
    started = time.process_time()
    rank = rank_of(n, blocks)
    start = spectral_start(weight, blocks, blocks, rank, torch.Generator().manual_seed(0))
    start_seconds = time.process_time() - started
    steps = alternate(weight, start)
    next(steps)
    each = []
    mark = time.process_time()
    for _ in islice(steps, sweeps):
        each.append(time.process_time() - mark)
        mark = time.process_time()
    seconds = statistics.median(each)
    print(
        f"n={n:<5} b={blocks:<3} r={rank:<5} start {start_seconds:8.3f} s  sweep {seconds:8.4f} s",
        flush=True,
    )
    return {
        "n": n,
        "blocks": blocks,
        "rank": rank,
        "start_seconds": start_seconds,
        "sweep_seconds": seconds,
    }


def exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Return a in y ~ x^a, by least squares of the logarithms."""
    xs, ys = [math.log(v) for v in x], [math.log(v) for v in y]
    centre, middle = statistics.fmean(xs), statistics.fmean(ys)
    spread = sum((v - centre) ** 2 for v in xs)
    return sum((v - centre) * (w - middle) for v, w in zip(xs, ys, strict=True)) / spread


def against_size(allowed: float) -> tuple[list[Row], list[Row]]:
    rows: list[Row] = []
    left_out = []
    used = 0.0
    for n in SIZES:
        # Twice the size is eight times the work, once the products dominate
        expected = 0.0
        if rows:
            last = rows[-1]
            once = last["start_seconds"] + (SWEEPS + 1) * last["sweep_seconds"]
            expected = once * (n / last["n"]) ** 3
        if used + expected > allowed:
            left_out.append({"n": n, "why": f"about {expected:.0f} s of CPU"})
            print(f"n={n}: left out, about {expected:.0f} s", flush=True)
            continue
        started = time.process_time()
        rows.append(timed_fit(n, BLOCKS))
        used += time.process_time() - started
    return rows, left_out


def peak_memory(n: int, blocks: int) -> Row:
    command = [sys.executable, "-m", "benchmarks.scaling", "--child", str(n), str(blocks)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True)
    row: Row = json.loads(answer.stdout)
    print(f"n={n:<5} b={blocks:<3} peak {row['times']:.2f} x the weight", flush=True)
    return row


def child(n: int, blocks: int) -> None:
    """Print the row that `peak_memory` returns.

    ru_maxrss is not used: in a child it starts at its parent's memory.
    """
    torch.set_num_threads(1)
    fit = partial(fit_plain, blocks_out=blocks, blocks_in=blocks)
    fit(torch.randn(1, 256, 256), rank=32, sweeps=2)
    before = psutil.Process().memory_info().rss
    weight = torch.randn(1, n, n)
    fit(weight, rank=rank_of(n, blocks), sweeps=MEMORY_SWEEPS)
    status = Path("/proc/self/status").read_text()
    peak = int(next(x for x in status.splitlines() if x.startswith("VmHWM")).split()[1]) * 1024
    times = (peak - before) / weight.nbytes
    print(json.dumps({"n": n, "blocks": blocks, "weight_bytes": weight.nbytes, "times": times}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--seconds", type=float, default=240.0, help="for the sizes, of CPU")
    parser.add_argument("--output", type=Path, default=RESULT)
    parser.add_argument("--child", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    torch.set_num_threads(1)
    machine = describe_machine(threads=1)
    sizes, left_out = against_size(options.seconds)
    blocks = [timed_fit(SIZE, b) for b in ALL_BLOCKS]
    memory = [peak_memory(n, b) for n, b in MEMORY]
    n, b = [row["n"] for row in sizes], [row["blocks"] for row in blocks]
    large = [row for row in sizes if row["n"] >= 1024]
    exponents = {
        "sweep_on_n": exponent(n, [row["sweep_seconds"] for row in sizes]),
        "sweep_on_n_from_1024": exponent(
            [row["n"] for row in large], [row["sweep_seconds"] for row in large]
        ),
        "start_on_n": exponent(n, [row["start_seconds"] for row in sizes]),
        "sweep_on_b": exponent(b, [row["sweep_seconds"] for row in blocks]),
        "sweep_on_b_from_4": exponent(b[2:], [row["sweep_seconds"] for row in blocks[2:]]),
    }
    for name, value in exponents.items():
        print(f"{name}: {value:.2f}")
    worst = max(row["times"] for row in memory)
    print(f"memory: at most {worst:.2f} x the weight (bar {MEMORY_BAR:.0f})")
    body = {
        "kept": KEPT,
        "blocks_of_sizes": BLOCKS,
        "n_of_blocks": SIZE,
        "against_n": sizes,
        "left_out": left_out,
        "against_b": blocks,
        "exponents": exponents,
        "memory": memory,
        "memory_sweeps": MEMORY_SWEEPS,
    }
    write_result(options.output, machine, body)


if __name__ == "__main__":
    main()
