"""How much of the FLOPs saved by low rank is saved as latency, on ONNX Runtime.

    python -m benchmarks.latency [--provider cpu] [--minilm FOLDER]

Dense and low-rank graphs, exported by lrcompress, alternate in one process on the same inputs:

layers    one Linear with bias and random weights, at three FLOP ratios (ranks in steps of 8, as in
          the planner), for several numbers of rows
encoder   all-MiniLM-L6-v2 with 80, 50 and 40 % of its encoder's Linears kept, ranks planned on
          500 sentences, for several batch sizes and lengths

FLOPs count every matrix product in the graph, including attention, at 2 per multiply-add.
The bar: latency ratio <= 1.15 x FLOP ratio for 128 rows (tokens) or more.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path

import onnx
import torch
from torch import nn

from benchmarks.machine import RESULTS, describe_machine, write_result
from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.export.bench import bench
from lrcompress.export.bench_report import BenchReport, BenchSettings, BenchTarget
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.random_feeds import graph_inputs, id_limits, make_feed
from lrcompress.export.session import EXECUTION_PROVIDERS, ProviderName, open_session
from lrcompress.layers import describe
from lrcompress.planning.budget import Budget
from lrcompress.planning.choices import STEP
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile
from lrcompress.sources.data import load_batches
from lrcompress.sources.models import load_model
from lrcompress.sources.options import DataOptions
from lrcompress.structures import LowRank
from sample_models.minilm import prepare

RESULT = RESULTS / "latency.json"
SENTENCES = Path("sample_models/data/sentences.txt")
BAR = 1.15  # times the FLOP ratio
BAR_FROM_ROWS = 128

LAYERS = ((384, 1536), (1024, 4096), (2048, 2048))  # in, out features
LAYER_FLOP_RATIOS = (0.75, 0.5, 0.25)
LAYER_ROWS = (1, 16, 128, 512)
ENCODER_KEPT = ("80%", "50%", "40%")
ENCODER_BATCHES = (1, 8)
ENCODER_LENGTHS = (128, 256)


@dataclass(frozen=True)
class Row:
    model: str
    kept: str  # as requested
    threads: int
    batch: int
    length: int | None
    dense_ms: float
    low_rank_ms: float
    latency_ratio: float  # of medians; `low` and `high` are its 95 % bootstrap interval
    low: float
    high: float
    flop_ratio: float

    @property
    def rows(self) -> int:
        return self.batch * (self.length or 1)

    @property
    def over_flops(self) -> float:
        return self.latency_ratio / self.flop_ratio

    @property
    def meets_bar(self) -> bool | None:
        """Whether the row meets the bar; None if the bar does not apply."""
        return None if self.rows < BAR_FROM_ROWS else self.over_flops <= BAR


class OneLinear(nn.Module):
    """(rows, in) -> (rows, out); a module around the layer, so that it can be replaced."""

    def __init__(self, features: int, out_features: int) -> None:
        super().__init__()
        self.layer = nn.Linear(features, out_features)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.layer(rows))


def layer_targets(features: int, out_features: int, folder: Path) -> list[BenchTarget]:
    """Export the dense layer, then one low-rank layer per FLOP ratio."""
    torch.manual_seed(0)
    batch = {"rows": torch.randn(8, features)}
    name = f"{features}-{out_features}"
    paths = [(f"{name}-dense", None), *((f"{name}-{ratio}", ratio) for ratio in LAYER_FLOP_RATIOS)]
    targets = []
    for stem, ratio in paths:
        module = OneLinear(features, out_features).eval()
        if ratio is not None:
            spec = describe(module).layers[0]
            exact = ratio * features * out_features / (features + out_features)
            rank = STEP * round(exact / STEP)  # rounded as in the planner
            factors = {
                "left": torch.randn(1, out_features, rank) / rank**0.5,
                "right": torch.randn(1, rank, features) / features**0.5,
            }
            built = LowRank(rank).build(module.layer, spec, factors, module.layer.bias.detach())
            module.layer = built  # type: ignore[assignment]
        path = folder / f"{stem}.onnx"
        export_onnx(module, batch, path)
        targets.append(BenchTarget("dense" if ratio is None else f"{ratio:.0%}", path))
    return targets


def encoder_targets(model: Path, folder: Path) -> list[BenchTarget]:
    """Export the dense encoder, then one file per budget, without a refit: only ranks matter."""
    dense = load_model(str(model))
    batches = load_batches(str(SENTENCES), dense, DataOptions())
    measured = profile(dense.module, batches, ProfileOptions(pooling=dense.pooling))
    targets = [BenchTarget("dense", folder / "dense.onnx")]
    export_onnx(dense.module, batches[-1], targets[0].path)
    for kept in ENCODER_KEPT:
        budget = Budget.parse(kept, scope="compressible")
        planned = plan(measured, budget, PlanOptions(include=("encoder.*",)))
        module = load_model(str(model)).module
        compress_(module, planned, measured, options=CompressOptions(refit=False))
        targets.append(BenchTarget(kept, folder / f"{kept.rstrip('%')}.onnx"))
        export_onnx(module, batches[-1], targets[-1].path)
    return targets


def graph_flops(path: Path, batch: int, length: int | None) -> int:
    """Count the FLOPs of a graph's matrix products at one input shape, from shapes at run time."""
    graph = onnx.load(path)
    products = [node for node in graph.graph.node if node.op_type in ("MatMul", "Gemm")]
    constants = {tensor.name: tuple(tensor.dims) for tensor in graph.graph.initializer}
    asked = {name for node in products for name in (node.input[0], node.output[0])} - set(constants)
    for name in sorted(asked):
        graph.graph.node.append(onnx.helper.make_node("Shape", [name], [f"{name}.shape"]))
        shape = onnx.helper.make_tensor_value_info(f"{name}.shape", onnx.TensorProto.INT64, None)
        graph.graph.output.append(shape)
    with tempfile.TemporaryDirectory() as folder:
        measured = Path(folder) / "shapes.onnx"
        onnx.save(graph, measured)
        session = open_session(measured)
        feed = make_feed(graph_inputs(session.get_inputs(), id_limits(measured)), batch, length, 0)
        names = [output.name for output in session.get_outputs()]
        found = dict(zip(names, session.run(None, feed), strict=True))
    shapes = {name: tuple(int(n) for n in found[f"{name}.shape"]) for name in asked} | constants
    flops = 0
    for node in products:
        transposed = any(a.name == "transA" and a.i for a in node.attribute)
        inner = shapes[node.input[0]][0 if transposed else -1]
        flops += 2 * inner * prod(shapes[node.output[0]])
    return flops


def rows_of(model: str, targets: Sequence[BenchTarget], report: BenchReport) -> list[Row]:
    paths = {target.name: target.path for target in targets}
    p50_ms = {(it.target, it.batch, it.length): it.p50_ms for it in report.latencies}
    rows = []
    for ratio in report.ratios:
        cell = (ratio.batch, ratio.length)
        dense_flops = graph_flops(paths[ratio.reference], *cell)
        rows.append(
            Row(
                model=model,
                kept=ratio.target,
                threads=report.threads or 0,
                batch=ratio.batch,
                length=ratio.length,
                dense_ms=p50_ms[(ratio.reference, *cell)],
                low_rank_ms=p50_ms[(ratio.target, *cell)],
                latency_ratio=ratio.latency_ratio,
                low=ratio.low,
                high=ratio.high,
                flop_ratio=graph_flops(paths[ratio.target], *cell) / dense_flops,
            )
        )
    return rows


def show(rows: Iterable[Row]) -> None:
    heads = ("thr", "batch", "length", "kept", "dense ms", "ms", "latency", "FLOPs", "lat/FLOP")
    print("{:>4} {:>6} {:>7} {:>6} {:>9} {:>9} {:>18} {:>6} {:>9}".format(*heads))
    for row in rows:
        verdict = {None: "", True: "meets the bar", False: "MISSES THE BAR"}[row.meets_bar]
        interval = f"{row.latency_ratio:.3f} ({row.low:.2f}-{row.high:.2f})"
        print(
            f"{row.threads:>4} {row.batch:>6} {row.length or '-':>7} {row.kept:>6} "
            f"{row.dense_ms:>9.3f} {row.low_rank_ms:>9.3f} {interval:>18} {row.flop_ratio:>6.3f} "
            f"{row.over_flops:>9.3f}  {verdict}".rstrip()
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--provider", choices=tuple(EXECUTION_PROVIDERS), default="cpu")
    parser.add_argument("--parts", nargs="+", choices=("layers", "encoder"))
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="of the encoder")
    parser.add_argument("--layer-runs", type=int, default=200)
    parser.add_argument("--encoder-runs", type=int, default=40)
    parser.add_argument("--minilm", type=Path, help="prepared folder; a temporary one by default")
    parser.add_argument("--output", type=Path, default=RESULT)
    asked = parser.parse_args()
    provider: ProviderName = asked.provider
    machine = describe_machine(provider=provider, threads=max(asked.threads))
    parts = asked.parts or ["layers", "encoder"]
    rows: list[Row] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for features, out_features in LAYERS if "layers" in parts else ():
            targets = layer_targets(features, out_features, folder)
            settings = BenchSettings(
                LAYER_ROWS, provider=provider, runs=asked.layer_runs, threads=1,
                measure_memory=False,
            )  # fmt: skip
            name = f"Linear {features} -> {out_features}"
            print(f"\n{name}, {settings.runs} runs; batch is its rows")
            rows += (found := rows_of(name, targets, bench(targets, settings)))
            show(found)
        if "encoder" in parts:
            targets = encoder_targets(asked.minilm or prepare(folder / "minilm"), folder)
            for threads in asked.threads:
                settings = BenchSettings(
                    ENCODER_BATCHES, ENCODER_LENGTHS, provider, asked.encoder_runs,
                    threads=threads, measure_memory=False,
                )  # fmt: skip
                print(f"\nall-MiniLM-L6-v2, {settings.runs} runs; kept is of its encoder's Linears")
                rows += (found := rows_of("all-MiniLM-L6-v2", targets, bench(targets, settings)))
                show(found)
    judged = [row for row in rows if row.meets_bar is not None]
    missed = [row for row in judged if not row.meets_bar]
    print(
        f"\n{len(judged) - len(missed)} of {len(judged)} rows with {BAR_FROM_ROWS} or more tokens "
        f"meet the bar (latency ratio <= {BAR} x FLOP ratio)"
    )
    for row in missed:
        print(
            f"  misses: {row.model}, {row.kept} kept, {row.threads} threads, {row.batch} x "
            f"{row.length or 1}: {row.over_flops:.3f}"
        )
    body = {
        "provider": EXECUTION_PROVIDERS[provider][0],
        "bar": f"latency ratio <= {BAR} x FLOP ratio at {BAR_FROM_ROWS} or more rows",
        "judged": len(judged),
        "missed": len(missed),
        "rows": [
            {**asdict(row), "latency_over_flops": row.over_flops, "meets_bar": row.meets_bar}
            for row in rows
        ],
    }
    write_result(asked.output, machine, body)
    print(f"written: {asked.output}", file=sys.stderr)


if __name__ == "__main__":
    main()
