"""Quantised weight plus a low-rank correction, against mixed formats at equal bytes.

LQER, QERA and CALDERA store W as Q + U V: a coarse weight, and a low-rank correction fitted to
what its rounding lost. Here both are fitted in the two-sided metric, one after the other, and the
factors are stored in int8. The comparison is the lower convex hull of the plain formats of the
same layer, which is what a plan over many layers reaches by mixing formats. A ratio below one means
that the correction would pay.

    OMP_NUM_THREADS=1 python -m benchmarks.correction [--subjects minilm-500,gpt]
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import torch
from torch import Tensor

from benchmarks.machine import describe_machine
from benchmarks.quality import SUBJECTS
from lrcompress.layers import weight_matrix
from lrcompress.metrics import METRICS, Whitening
from lrcompress.number_formats import Codes, GridFormat, parse_format
from lrcompress.planning.relaxation import lower_hull
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profiler import profile
from lrcompress.rounding import PreparedMetric, RoundingTask, rounded
from lrcompress.rounding.factors import rounded_product

RESULTS = Path(__file__).parent / "results" / "correction.json"
PLAIN = ("int2/32", "int2/16", "int4/128", "int4/32", "int4/16", "int8/128")
CORRECTED = ("int2/32", "int4/128", "int4/32")
FACTORS = "int8/128"
RANKS = (4, 8, 16, 32)
PASSES = 3


@dataclass(frozen=True)
class Row:
    subject: str
    layer: str
    format: str
    rank: int
    bytes_share: float  # of float32
    loss: float
    hull: float  # loss of the plain formats at the same bytes

    @property
    def ratio(self) -> float:
        return self.loss / self.hull


def corrected_loss(
    weight: Tensor, whitening: Whitening, metric: PreparedMetric, format: GridFormat, rank: int
) -> float:
    """Return the least loss of Q + U V over a few alternations; weight: (m, n), float64."""
    moments = _gram(whitening.input.gram()), _gram(whitening.output.gram())
    factor = parse_format(FACTORS)
    assert isinstance(factor, GridFormat)
    correction = torch.zeros_like(weight)
    losses = []
    for _ in range(PASSES):
        base = rounded(RoundingTask(weight - correction, format, *moments), metric=metric)
        rest = weight - base.dequantised().double()
        left, middle, right = torch.linalg.svd(whitening.whiten(rest[None])[0], full_matrices=False)
        up = whitening.output.left_inverse((left[:, :rank] * middle[:rank])[None])[0]
        down = whitening.input.right_inverse(right[:rank][None])[0]
        generator = torch.Generator().manual_seed(0)
        parts = rounded_product(rest, up, down, factor, factor, *moments, generator)
        codes = [part for part in parts if isinstance(part, Codes)]
        correction = codes[0].dequantised().double() @ codes[1].dequantised().double()
        losses.append(float(whitening.loss((rest - correction)[None])))
    return min(losses)


def layer_rows(subject: str, name: str, weight: Tensor, whitening: Whitening) -> list[Row]:
    m, n = weight.shape
    moments = _gram(whitening.input.gram()), _gram(whitening.output.gram())
    metric = PreparedMetric.of(*moments)
    points = []
    for text in PLAIN:
        format = _grid(text)
        codes = rounded(RoundingTask(weight, format, *moments), metric=metric)
        loss = float(whitening.loss((weight - codes.dequantised().double())[None]))
        points.append((format.nbytes(m, n) / (4 * m * n), loss))
    rows = []
    for text in CORRECTED:
        format, factor = _grid(text), _grid(FACTORS)
        for rank in RANKS:
            stored = format.nbytes(m, n) + factor.nbytes(m, rank) + factor.nbytes(rank, n)
            share = stored / (4 * m * n)
            loss = corrected_loss(weight, whitening, metric, format, rank)
            rows.append(Row(subject, name, text, rank, share, loss, _on_hull(points, share)))
    return rows


def _on_hull(points: Sequence[tuple[float, float]], share: float) -> float:
    """Return the loss of the lower convex hull at a share of the bytes."""
    points = sorted(points)
    corners = [points[index] for index in lower_hull(points)]
    after = next((i for i, (x, _) in enumerate(corners) if x >= share), len(corners) - 1)
    if after == 0 or corners[after][0] < share:
        return corners[after][1]
    (x0, y0), (x1, y1) = corners[after - 1], corners[after]
    return y0 + (y1 - y0) * (share - x0) / (x1 - x0)


def _grid(text: str) -> GridFormat:
    format = parse_format(text)
    assert isinstance(format, GridFormat)
    return format


def _gram(moment: Tensor | None) -> Tensor | None:
    return None if moment is None else moment[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--subjects", default="minilm-500")
    parser.add_argument("--layers", type=int, default=12, help="evenly spread over the network")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[Row] = []
    for subject in asked.subjects.split(","):
        made = SUBJECTS[subject]()
        options = ProfileOptions(pooling=made.pooling, trials=False)
        found = profile(made.module, made.batches, options)
        layers = [x for x in found.layers if x.spec.kind == "linear" and x.spec.groups == 1]
        step = max(1, len(layers) // asked.layers)
        for layer in layers[::step]:
            moments = found.moments[layer.name]
            whitening = METRICS["two-sided"].whitening(
                moments, shrinkage=layer.shrinkage, centred=layer.centred
            )
            weight = weight_matrix(made.module.get_submodule(layer.name))[0].double()
            rows += layer_rows(subject, layer.name, weight, whitening)
        for text in CORRECTED:
            for rank in RANKS:
                ratios = [
                    r.ratio for r in rows if (r.subject, r.format, r.rank) == (subject, text, rank)
                ]
                print(
                    f"{subject:12} {text:8} + rank {rank:2}: loss over that of mixed formats "
                    f"{median(ratios):.2f} (best layer {min(ratios):.2f}, {len(ratios)} layers)"
                )
    found = {"machine": describe_machine(threads=1), "rows": [asdict(row) for row in rows]}
    RESULTS.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
