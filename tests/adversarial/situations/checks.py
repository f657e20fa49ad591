"""What a run came to, held against what it should have come to."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn

from lrcompress.layers import describe, weight_matrix
from lrcompress.pipeline import RunResult, SourceOptions
from lrcompress.pipeline.stages.load import load_sources
from lrcompress.planning.budget import Budget

CACHES = ("past_key_values", "mems", "state", "cache_params")  # of decoders; no graph returns them
USUAL = (
    "the weights are the factory's own",
    "assumed: ",
    "the plan uses ",
    "both are negligible",
    "left alone: ",
    "classes as first choices",  # of few random examples
    "% of the work: smaller, hardly faster",
)


def exact_budget(source: SourceOptions, rounding: float = 1e-5) -> Budget:
    """What factors of the weights' own ranks take, and half of what the smallest of them saves: no
    layer can stay dense without another one losing something."""
    module = load_sources(source).model.module
    needed, savings = 0, []
    for spec in describe(module).layers:
        layer = module.get_submodule(spec.name)
        matrix = weight_matrix(layer).double()
        least = max(rounding, 4 * torch.finfo(weight_matrix(layer).dtype).eps)
        rank = max(int(torch.linalg.matrix_rank(group, rtol=least)) for group in matrix)
        factors = spec.groups * rank * (spec.out_features + spec.in_features)
        savings.append(spec.weight_params - factors)
        needed += factors
    assert min(savings) > 0, "a layer whose rank saves nothing tests nothing"
    return Budget("params", needed + min(savings) // 2, relative=False, scope="compressible")


def unexpected(
    result: RunResult, left: Mapping[str, str], due: Mapping[str, str], says: Sequence[str]
) -> list[str]:
    """What was said and should not have been, and the other way round.

    left: what was left alone and why; due: what should have been, with a part of its reason.
    """
    said = [*result.report.warnings, *result.report.doubts]
    wrong = [f"said: {x}" for x in said if not any(y in x for y in (*USUAL, *says))]
    wrong += [f"not said: {x}" for x in says if not any(x in y for y in said)]
    wrong += [f"left: {n} ({r})" for n, r in left.items() if n not in due or due[n] not in r]
    return wrong + [f"not left: {n}" for n in due if n not in left]


def outputs_of(module: nn.Module, batch: Mapping[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        return _tensors(module(**{name: tensor.clone() for name, tensor in batch.items()}))


def graph_outputs(
    session: onnxruntime.InferenceSession, batch: Mapping[str, Tensor]
) -> list[Tensor]:
    feed = {argument.name: batch[argument.name].numpy() for argument in session.get_inputs()}
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, feed)]


def apart(found: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """The largest error of any output, relative to its root mean square."""
    assert len(found) == len(wanted)
    worst = 0.0
    for given, right in zip(found, wanted, strict=True):
        assert given.shape == right.shape
        scale = float(right.double().abs().square().mean().sqrt()) or 1.0
        worst = max(worst, float((given.double() - right.double()).abs().max()) / scale)
    return worst


def _tensors(raw: object) -> list[Tensor]:
    """In their order; the fields of dataclasses too, which torch's trees do not know."""
    if isinstance(raw, dict):
        raw = [value for key, value in raw.items() if key not in CACHES]  # torch's trees sort some
    elif dataclasses.is_dataclass(raw):
        raw = [getattr(raw, field.name) for field in dataclasses.fields(raw)]
    if isinstance(raw, list | tuple):
        return [leaf for part in raw for leaf in _tensors(part)]
    return [raw] if isinstance(raw, Tensor) else []
