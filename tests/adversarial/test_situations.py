"""Networks in unusual situations: each compresses right, or is left alone or refused by name."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor
import lrcompress
from adversarial.situations import SITUATIONS, Situation
from lrcompress.errors import LrcompressError
from lrcompress.layers import describe, weight_matrix
from lrcompress.pipeline import FolderOptions, RunOptions, RunResult, SourceOptions, run
from lrcompress.pipeline.loading import load_sources
from lrcompress.planning.budget import Budget
from lrcompress.sources.factory import call_factory
from lrcompress.structures import Dense

HERE = "adversarial.situations"
OTHER_SEED = 77  # of batches that were not calibrated on
USUAL = (
    "the weights are the factory's own",
    "assumed: ",
    "the plan uses ",
    "both are negligible",
    "left alone: ",
    "classes as first choices",  # of few random examples
    "% of the work: smaller, hardly faster",
)


def _parameters(default: bool) -> list[Any]:
    rows = []
    for name, row in SITUATIONS.items():
        marks = [] if row.default else [pytest.mark.slow]
        if row.fault:
            marks.append(pytest.mark.xfail(strict=True, reason=row.fault))
        if bool(row.refused) is not default:
            rows.append(pytest.param(name, id=name, marks=marks))
    return rows


def source_of(name: str) -> SourceOptions:
    return SourceOptions(f"{HERE}.network:{name}", data=f"{HERE}.data:{name}")


def options(name: str, output: Path, budget: Budget) -> RunOptions:
    return RunOptions(
        source=source_of(name),
        folder=FolderOptions(output, report=False),
        budget=budget,
    )


def exact_budget(source: SourceOptions) -> Budget:
    """What factors of the weights' own ranks take, and half of what the smallest of them saves: no
    layer can stay dense without another one losing something."""
    module = load_sources(source).model.module
    needed, savings = 0, []
    for spec in describe(module).layers:
        layer = module.get_submodule(spec.name)
        matrix = weight_matrix(layer).double()
        rounding = max(1e-5, 4 * torch.finfo(weight_matrix(layer).dtype).eps)
        rank = max(int(torch.linalg.matrix_rank(group, rtol=rounding)) for group in matrix)
        factors = spec.groups * rank * (spec.out_features + spec.in_features)
        savings.append(spec.weight_params - factors)
        needed += factors
    assert min(savings) > 0, "a layer whose rank saves nothing tests nothing"
    return Budget("params", needed + min(savings) // 2, relative=False, scope="compressible")


@pytest.mark.parametrize("name", _parameters(default=True))
def test_compresses_right(name: str, tmp_path: Path) -> None:
    row = SITUATIONS[name]
    output = tmp_path / "run"
    result = run(options(name, output, exact_budget(source_of(name))))
    assert told_otherwise(row, result) == []
    assert {c.name: c.detail for c in result.report.checks if c.passed is False} == {}
    dense = call_factory(f"{HERE}.network:{name}").eval()
    small = lrcompress.load(output).eval()
    dtype = next(p.dtype for p in dense.parameters())
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    for batch in row.batches(OTHER_SEED)[:2]:
        for size in (len(next(iter(batch.values()))), 3, 1):
            part = {n: t[:size].clone() for n, t in batch.items()}
            own = {n: t.to(dtype) if t.is_floating_point() else t for n, t in part.items()}
            wanted = outputs_of(dense, own)
            assert apart(outputs_of(small, own), wanted) <= row.tolerance
            assert apart(graph_outputs(session, part), wanted) <= row.tolerance
    changed = [x.name for x in result.plan.layers if not isinstance(x.structure, Dense)]
    dense_layers = [x.name for x in result.plan.layers if isinstance(x.structure, Dense)]
    assert (len(changed), dense_layers) == (row.layers, [])


@pytest.mark.parametrize("name", _parameters(default=False))
def test_is_refused(name: str, tmp_path: Path) -> None:
    row = SITUATIONS[name]
    with pytest.raises(LrcompressError) as caught:
        run(options(name, tmp_path / "run", Budget.parse("60%")))
    assert row.refused in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "profile").exists()  # before the long work


def told_otherwise(row: Situation, result: RunResult) -> list[str]:
    """What was said and should not have been, and the other way round."""
    said = [*result.report.warnings, *result.report.doubts]
    wrong = [f"unexpected: {x}" for x in said if not any(y in x for y in (*USUAL, *row.says))]
    wrong += [f"not said: {x}" for x in row.says if not any(x in y for y in said)]
    left = {x.name: x.reason for x in result.profile.left_alone if x.matrix_params}
    wrong += [f"left alone: {n} ({r})" for n, r in left.items() if row.left.get(n, "?!") not in r]
    wrong += [f"not left alone: {n}" for n in row.left if n not in left]
    return wrong


def outputs_of(module: torch.nn.Module, batch: dict[str, Tensor]) -> list[Tensor]:
    with torch.no_grad():
        raw = module(**{name: tensor.clone() for name, tensor in batch.items()})
    return _tensors(raw)


def _tensors(raw: object) -> list[Tensor]:
    """In their order; the fields of dataclasses too, which torch's trees do not know."""
    if dataclasses.is_dataclass(raw):
        raw = [getattr(raw, field.name) for field in dataclasses.fields(raw)]
    if isinstance(raw, dict):
        raw = list(raw.values())  # in their own order; torch's trees sort some
    if isinstance(raw, list | tuple):
        return [leaf for part in raw for leaf in _tensors(part)]
    return [raw] if isinstance(raw, Tensor) else []


def graph_outputs(
    session: onnxruntime.InferenceSession, batch: dict[str, Tensor]
) -> list[Tensor]:
    feed = {argument.name: batch[argument.name].numpy() for argument in session.get_inputs()}
    return [torch.from_numpy(np.asarray(value)) for value in session.run(None, feed)]


def apart(found: list[Tensor], wanted: list[Tensor]) -> float:
    """The largest error of any output, relative to its root mean square."""
    assert len(found) == len(wanted)
    worst = 0.0
    for given, right in zip(found, wanted, strict=True):
        assert given.shape == right.shape
        scale = float(right.double().abs().square().mean().sqrt()) or 1.0
        error = float((given.double() - right.double()).abs().max()) / scale
        worst = max(worst, error)
    return worst
