"""Rounding methods: seconds and loss, on random metrics of three sizes and on MiniLM's layers.

    python -m benchmarks.rounding [--skip-largest] [--skip-minilm]

Each method rounds the same weights to the same format; the loss is 1/2 tr(G E C E^T). Seconds are
of one thread, in wall time and in processor time (the better measure where other work is running),
the least of a few runs. The factorisation of the moments is timed apart: formats and weights share
it. MiniLM's moments come from its profile on half of its glosses; the losses of all encoder layers
are added. They are also given in moments of the other half, of which rounding knew nothing.

The bars: .05 s for 384 x 384, .25 s for 1536 x 384, 3 s for 2048 x 8192, and everywhere two-sided
below GPTQ below nearest.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TypeVar

import torch
from torch import Tensor

from benchmarks.machine import RESULTS, describe_machine, write_result
from lrcompress.compression.fit import layer_whitening
from lrcompress.layers import weight_matrix
from lrcompress.network.batches import Batches
from lrcompress.number_formats import GridFormat, parse_format
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile
from lrcompress.rounding import (
    ROUNDINGS,
    PreparedMetric,
    RoundingTask,
    product_loss,
    rounded,
    rounding_loss,
)

RESULT = RESULTS / "rounding.json"
SECONDS = {(384, 384): 0.05, (1536, 384): 0.25, (2048, 8192): 3.0}  # bars of the two-sided method
TIMED_FORMAT = "int4/32"
FORMATS = ("int4/32", "int4/128", "uint4/32", "int2/32", "int8/128", "int8-dynamic")
FREE = 64  # independent directions of a random moment beyond its features


Result = TypeVar("Result")


@dataclass(frozen=True)
class Timing:
    rows: int
    columns: int
    method: str
    prepare_wall_s: float
    prepare_processor_s: float
    wall_s: float
    processor_s: float
    loss_of_nearest: float  # share of the nearest method's loss


@dataclass(frozen=True)
class Layers:
    """Losses of MiniLM's encoder layers, added, and the time to prepare and round all of them."""

    format: str
    method: str
    loss: float
    loss_elsewhere: float  # in moments of examples that rounding did not use
    processor_s: float


@dataclass(frozen=True)
class Watched:
    wall_s: float
    processor_s: float


def least(run: Callable[[], Result], times: int) -> tuple[Result, Watched]:
    """Run some times; return the last result and the least times."""
    wall, processor = [], []
    for _ in range(times):
        began, used = time.perf_counter(), time.process_time()
        result = run()
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    return result, Watched(min(wall), min(processor))


def random_moment(features: int, generator: torch.Generator) -> Tensor:
    """Features of different sizes, correlated through a few common directions."""
    sizes = torch.logspace(0, -1, features)[torch.randperm(features, generator=generator)]
    own = torch.randn(features, features + FREE, generator=generator) * sizes.unsqueeze(1)
    common = torch.randn(features, FREE, generator=generator)
    return (own @ own.mT + 0.3 * common @ common.mT) / features


def timings(rows: int, columns: int, runs: int) -> list[Timing]:
    generator = torch.Generator().manual_seed(0)
    weight = 0.05 * torch.randn(rows, columns, generator=generator)
    input, output = random_moment(columns, generator), random_moment(rows, generator)
    task = RoundingTask(weight, grid_format(TIMED_FORMAT), input, output)
    found = []
    worst = rounding_loss(task, rounded(task, "nearest"))
    for name, method in ROUNDINGS.items():
        moments = method.moments(task)
        metric, preparing = least(lambda moments=moments: PreparedMetric.of(*moments), runs)
        codes, rounding = least(
            lambda name=name, metric=metric: rounded(task, name, metric=metric), runs
        )
        loss = rounding_loss(task, codes) / worst
        found.append(
            Timing(rows, columns, name, *vars(preparing).values(), *vars(rounding).values(), loss)
        )
        show(found[-1])
    return found


def grid_format(name: str) -> GridFormat:
    format = parse_format(name)
    assert isinstance(format, GridFormat)
    return format


@dataclass(frozen=True, eq=False)
class Layer:
    weight: Tensor
    moments: tuple[Tensor | None, Tensor | None]
    elsewhere: tuple[Tensor | None, Tensor | None]


def minilm_layers() -> list[Layer]:
    """Return the encoder's Linears with moments of two halves of the calibration texts."""
    from benchmarks.unseen_networks.minilm import load

    network = load()
    half = len(network.batches) // 2

    def moments(batches: Batches) -> dict[str, tuple[Tensor | None, Tensor | None]]:
        found = profile(network.module, batches, ProfileOptions(trials=False))
        return {
            layer.name: tuple(
                None if gram is None else gram[0].float()
                for whitening in [layer_whitening(layer, "two-sided", found.moments[layer.name])]
                for gram in (whitening.input.gram(), whitening.output.gram())
            )
            for layer in found.layers
            if layer.spec.kind == "linear" and layer.name.startswith("encoder")
        }

    one, other = moments(network.batches[:half]), moments(network.batches[half:])
    return [
        Layer(weight_matrix(network.module.get_submodule(name))[0].float(), one[name], other[name])
        for name in one
    ]


def layer_losses(layers: Sequence[Layer]) -> list[Layers]:
    found = []
    for name in FORMATS:
        for method in ROUNDINGS:
            loss = elsewhere = seconds = 0.0
            for layer in layers:
                task = RoundingTask(layer.weight, grid_format(name), *layer.moments)
                codes, watched = least(lambda task=task, method=method: rounded(task, method), 1)
                loss += rounding_loss(task, codes)
                elsewhere += product_loss(layer.weight, codes.dequantised(), *layer.elsewhere)
                seconds += watched.processor_s
            found.append(Layers(name, method, loss, elsewhere, seconds))
            show(found[-1])
    return found


def show(row: Timing | Layers) -> None:
    print(
        "  ".join(
            f"{key} {value:.4g}" if isinstance(value, float) else f"{key} {value}"
            for key, value in asdict(row).items()
        ),
        flush=True,
    )


def failures(timed: Sequence[Timing], layers: Sequence[Layers]) -> list[str]:
    """Return the bars that are missed."""
    missed = [
        f"{row.rows} x {row.columns}: {row.processor_s:.3f} s of processor time, bar {bar} s"
        for row in timed
        if row.method == "two-sided" and row.processor_s > (bar := SECONDS[row.rows, row.columns])
    ]
    losses = [
        {row.method: row.loss_of_nearest for row in timed if (row.rows, row.columns) == size}
        for size in SECONDS
    ]
    losses += [{row.method: row.loss for row in layers if row.format == name} for name in FORMATS]
    return missed + [
        f"losses out of order: {found}"
        for found in losses
        if found and not found["two-sided"] < found["gptq"] < found["nearest"]
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--skip-largest", action="store_true", help="without 2048 x 8192")
    parser.add_argument("--skip-minilm", action="store_true", help="random metrics only")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    machine = describe_machine(threads=1)
    sizes = [size for size in SECONDS if not (arguments.skip_largest and size == (2048, 8192))]
    timed = [row for size in sizes for row in timings(*size, runs=2 if size[1] > 4096 else 7)]
    layers = [] if arguments.skip_minilm else layer_losses(minilm_layers())
    missed = failures(timed, layers)
    write_result(
        RESULT,
        machine,
        {
            "format": TIMED_FORMAT,
            "timings": [asdict(row) for row in timed],
            "minilm": [asdict(row) for row in layers],
            "missed": missed,
        },
    )
    for line in missed:
        print(line)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
