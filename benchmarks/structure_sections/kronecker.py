"""Compares sums of Kronecker products with other structures of as many parameters.

Each linear layer of a profiled network is fitted with Kronecker sums of three sizes. The loss is
that of the profile's metric, as a share of the loss of removing the layer.

kept         parameters, as a share of the dense weight's
layers       linear layers that have a fit of that size
wins         layers where it loses less than low rank, BLAST and Monarch of at most that size
kronecker    median loss
others       median of the lowest loss of the others
"""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from statistics import median

from torch import nn

from benchmarks.structure_sections.request import Request, Row
from benchmarks.structure_sections.trained import committed
from lrcompress.network.batches import Batches
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import LayerProfile
from lrcompress.profiling.profiler import profile
from lrcompress.sources.data import load_batches
from lrcompress.sources.models import load_model
from lrcompress.sources.options import DataOptions
from sample_models.minilm import prepare

STRUCTURES = ("low_rank", "kronecker", "blast", "monarch")
BATCHES = 4
SENTENCES = Path("sample_models/data/sentences.txt")


def run(request: Request) -> Row:
    """Profile each network; `request.models` has no effect."""
    rows: list[Row] = []
    for name, load in list(NETWORKS.items())[: 1 if request.quick else None]:
        module, batches, pooling = load()
        found = profile(module, batches, ProfileOptions(structures=STRUCTURES, pooling=pooling))
        for row in compare(name, found.layers):
            rows.append(row)
            print("  ".join(f"{key} {value}" for key, value in row.items()), flush=True)
    return {"rows": rows}


def sample(name: str) -> tuple[nn.Module, Batches, str | None]:
    batches = import_module(f"sample_models.{name}.data").calibration()
    return committed(name), batches[:BATCHES], None


def encoder() -> tuple[nn.Module, Batches, str | None]:
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(str(prepare(Path(folder) / "minilm")))
        batches = load_batches(str(SENTENCES), loaded, DataOptions())
    return loaded.module, batches[:BATCHES], loaded.pooling


NETWORKS: dict[str, Callable[[], tuple[nn.Module, Batches, str | None]]] = {
    "vit": partial(sample, "fashion_vit"),
    "gpt": partial(sample, "text_gpt"),
    "minilm": encoder,
}


def compare(network: str, layers: Iterable[LayerProfile]) -> list[Row]:
    """Return one row for each size of Kronecker sums, from small to large."""
    found: dict[int, list[tuple[float, float, float]]] = defaultdict(list)
    for layer in layers:
        if layer.spec.kind == "linear":
            for place, point in enumerate(_points(layer)):
                if point[0] < 1:
                    found[place].append(point)
    return [
        {
            "model": network,
            "kept": span([kept for kept, _, _ in points]),
            "layers": len(points),
            "wins": sum(own < others for _, own, others in points),
            "kronecker": round(median(own for _, own, _ in points), 4),
            "others": round(median(others for _, _, others in points), 4),
        }
        for _, points in sorted(found.items())
    ]


def span(shares: Sequence[float]) -> str:
    """The smallest and the largest share, such as "2-8 %", or the one share."""
    least, most = (f"{100 * share:.0f}" for share in (min(shares), max(shares)))
    return f"{least} %" if least == most else f"{least}-{most} %"


def _points(layer: LayerProfile) -> list[tuple[float, float, float]]:
    """Share of the parameters, loss of the Kronecker sum, and the lowest loss of the others."""
    spec, removal = layer.spec, layer.loss_of_removal(layer.curves_metric)
    weight = spec.out_features * spec.in_features
    energy = layer.spectra[layer.curves_metric].double().square()
    points = []
    for curve in layer.curves:
        if curve[0].structure.type_name != "kronecker":
            continue
        for point in curve:
            params = point.structure.weight_params(spec)
            rank = params // (spec.out_features + spec.in_features)
            others = [float(0.5 * energy[rank:].sum())]
            others += [
                other.loss
                for rival in layer.curves
                for other in rival
                if other.structure.type_name != "kronecker"
                and other.structure.weight_params(spec) <= params
            ]
            points.append((params / weight, point.loss / removal, min(others) / removal))
    return points
