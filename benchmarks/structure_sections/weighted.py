"""Weighted fits: the error that inputs see, on inputs that no fit has seen.

The second moment C of a layer's inputs is taken from one half of the calibration examples for the
fits, and from the other half for the error ||dW C^1/2|| / ||W C^1/2||. Half of the parameters, or
30 %, each.

svd           truncated SVD of the weight
whitened svd  the same of W C^1/2 (input-weighted low rank)
plain blast   4 blocks, in the Frobenius norm
blast         4 blocks, in the norm of the full C; and the same with 8
"""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.structure_sections.request import Request, Row
from benchmarks.structure_sections.trained import TRAINED
from benchmarks.subjects import TEXTS
from lrcompress.layers import LayerSpec, describe, input_rows, weight_matrix
from lrcompress.metrics import METRICS, LayerMoments, Whitening
from lrcompress.network.batches import Batch
from lrcompress.profiling.layer_profile import shrinkage_for
from lrcompress.sources.data import load_batches
from lrcompress.sources.models import load_model
from lrcompress.sources.options import DataOptions
from lrcompress.structures import LowRank, Structure
from lrcompress.structures.blast import Blast
from sample_models.minilm import prepare

PARAGRAPHS = 1200
KEPT = (0.5, 0.3)
LAYERS = TRAINED["minilm"][1]


def run(request: Request) -> Row:
    """On MiniLM alone, whatever the models asked for."""
    module, halves = moments(120 if request.quick else PARAGRAPHS)
    specs = {spec.name: spec for spec in describe(module).layers}
    rows = []
    for layer in LAYERS[:1] if request.quick else LAYERS:
        weight = weight_matrix(module.get_submodule(layer)).detach().to(torch.float64)
        learned, held_out = (half[layer] for half in halves)
        for kept in KEPT:
            row = {"model": "minilm", "layer": layer, "kept": kept, "shape": list(weight.shape[1:])}
            row["fits"] = compare(weight, specs[layer], kept, learned, held_out)
            rows.append(row)
            fits = "  ".join(
                f"{name} {fit['error']:.4f} ({fit['seconds']:.2f} s)"
                for name, fit in row["fits"].items()
            )
            print(f"{layer.removeprefix('encoder.'):32} {kept:.0%}  {fits}", flush=True)
    return {"paragraphs": PARAGRAPHS, "rows": rows}


def compare(
    weight: Tensor, spec: LayerSpec, kept: float, learned: LayerMoments, held_out: LayerMoments
) -> dict[str, Row]:
    m, n = weight.shape[1:]
    metric = METRICS["input-weighted"]
    whitening = metric.whitening(learned, shrinkage=shrinkage_for(spec, learned.rows))
    judge = metric.whitening(held_out)
    total = judge.loss(weight)
    low_rank = LowRank(int(kept * m * n / (m + n)))
    four, eight = (Blast(int(kept * m * n / (m + n + b * b)), b) for b in (4, 8))
    fits: dict[str, tuple[Structure, Whitening]] = {
        "svd": (low_rank, Whitening()),
        "whitened svd": (low_rank, whitening),
        "plain blast": (four, Whitening()),
        "blast": (four, whitening),
        "blast, b=8": (eight, whitening),
    }
    found: dict[str, Row] = {}
    for name, (structure, seen) in fits.items():
        started = time.process_time()
        factors = structure.fit(weight, seen, spec)
        seconds = time.process_time() - started
        error = (judge.loss(weight - structure.dense(factors, spec)) / total).sqrt()
        found[name] = {"error": float(error), "seconds": seconds}
    return found


def moments(paragraphs: int) -> tuple[nn.Module, list[dict[str, LayerMoments]]]:
    """MiniLM, and the second moments of its layers' inputs over each half of the paragraphs."""
    with tempfile.TemporaryDirectory() as folder:
        loaded = load_model(str(prepare(Path(folder) / "minilm")))
        texts = Path(folder) / "paragraphs.txt"
        texts.write_text("\n".join(TEXTS["bible paragraphs"](paragraphs, 0)), encoding="utf-8")
        batches = load_batches(str(texts), loaded, DataOptions())
    halves = batches[::2], batches[1::2]  # they are sorted by length
    return loaded.module, [inputs_of(loaded.module, half) for half in halves]


@torch.no_grad()
def inputs_of(module: nn.Module, batches: list[Batch]) -> dict[str, LayerMoments]:
    seen: dict[str, list[Tensor]] = {name: [] for name in LAYERS}  # of the batch in work
    handles = []
    for name in LAYERS:
        layer = module.get_submodule(name)
        handles.append(
            layer.register_forward_pre_hook(
                lambda layer, inputs, name=name: seen[name].append(input_rows(layer, inputs[0]))
            )
        )
    sums: dict[str, Tensor] = {}
    rows = 0
    for batch in batches:
        module(**batch)
        real = batch["attention_mask"].bool()
        rows += int(real.sum())
        for name in LAYERS:
            x = seen[name].pop()[real].squeeze(1).to(torch.float64)  # (rows, n)
            sums[name] = sums.get(name, 0) + x.T @ x
    for handle in handles:
        handle.remove()
    examples = sum(len(batch["attention_mask"]) for batch in batches)
    return {name: of_inputs(total / examples, rows, examples) for name, total in sums.items()}


def of_inputs(moment: Tensor, rows: int, examples: int) -> LayerMoments:
    """Means are not looked at by the metric that the section fits in."""
    none = torch.zeros(1, len(moment), dtype=moment.dtype)
    return LayerMoments(moment[None], none, none, rows, examples)
