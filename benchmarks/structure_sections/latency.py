"""What structures cost in time: each in its fastest exported form against the dense layer.

Low rank and BLAST at half of the dense layer's multiply-adds, the other structures at the size of
theirs nearest to it, on ONNX Runtime's CPU provider with one thread. The cells are ratios of median
latencies, structure over dense, over the rows of one call; all forms are in the result.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from benchmarks.structure_sections.request import Request, Row
from lrcompress.export.calibrate import CalibrationSettings, OneLayer, time_structures
from lrcompress.layers import LayerSpec, describe
from lrcompress.planning.latency import Measurement
from lrcompress.structures import STRUCTURES, LowRank, Structure
from lrcompress.structures.blast import Blast

KEPT = 0.5
SHAPES = ((2048, 2048), (1536, 384), (384, 1536))  # out, in features
ROWS = (1, 16, 128, 512)
BLOCKS = (2, 4, 8, 16)
BARS = {("low_rank", 0): 0.55, ("blast", 4): 0.65, ("blast", 8): 0.8}
BAR_SHAPE, BAR_ROWS = (2048, 2048), 512


def run(request: Request) -> Row:
    shapes, runs = (SHAPES[1:2], 3) if request.quick else (SHAPES, 60)
    rows: list[Measurement] = []
    for shape in shapes:
        spec = describe(OneLayer(*shape)).layers[0]
        found = time_structures(
            structures_of(spec), shape, CalibrationSettings(rows=ROWS, runs=runs)
        )
        show(found)
        rows += found
    judged = bars(rows)
    for line in judged:
        print(f"  {line['claim']}: {line['measured']:.3f}", flush=True)
    return {"runs": runs, "rows": [asdict(it) for it in rows], "bars": judged}


def structures_of(spec: LayerSpec) -> list[Structure]:
    m, n = spec.out_features, spec.in_features
    chosen: list[Structure] = [LowRank(round(KEPT * m * n / (m + n)))]
    chosen += [Blast(round(KEPT * m * n / (m + n + b * b)), b) for b in BLOCKS]
    for name, structure in STRUCTURES.items():
        if name not in ("dense", "low_rank", "blast"):
            for family in structure.families(spec):
                chosen.append(min(family, key=lambda it: abs(share(it, spec) - KEPT)))
    return chosen


def share(structure: Structure, spec: LayerSpec) -> float:
    return structure.flops_per_row(spec) / spec.flops_per_row


def fastest(rows: Iterable[Measurement]) -> dict[tuple[str, int, float], dict[int, Measurement]]:
    best: dict[tuple[str, int, float], dict[int, Measurement]] = {}
    for it in rows:
        cells = best.setdefault((it.structure, it.blocks, it.kept), {})
        if it.rows not in cells or it.ratio < cells[it.rows].ratio:
            cells[it.rows] = it
    return best


def show(rows: list[Measurement]) -> None:
    print(f"{rows[0].out_features} x {rows[0].in_features}, latency over dense")
    for (name, blocks, kept), cells in fastest(rows).items():
        text = "  ".join(f"{cells[n].ratio:5.2f} {cells[n].form:9}" for n in sorted(cells))
        print(f"  {name:15} {blocks or '':>3} {kept:4.0%}  {text}".rstrip(), flush=True)


def bars(rows: list[Measurement]) -> list[Row]:
    judged = []
    at_bar = [
        it for it in rows if (it.out_features, it.in_features, it.rows) == (*BAR_SHAPE, BAR_ROWS)
    ]
    for (name, blocks, _), cells in fastest(at_bar).items():
        bar = BARS.get((name, blocks))
        if bar is not None:
            size = f"{BAR_SHAPE[0]} x {BAR_SHAPE[1]}, {BAR_ROWS} rows"
            claim = f"{name} {blocks or ''}".strip() + f" at most {bar} of dense ({size})"
            ratio = cells[BAR_ROWS].ratio
            judged.append({"claim": claim, "measured": ratio, "reached": ratio <= bar})
    return judged
