"""Networks in unusual situations: each compresses right, or is left alone or refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnxruntime
import pytest

import lrcompress
from adversarial.situations import SITUATIONS
from adversarial.situations.checks import apart, exact_budget, graph_outputs, outputs_of, unexpected
from lrcompress.errors import LrcompressError
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.sources.factory import call_factory
from lrcompress.structures import Dense

HERE = "adversarial.situations"
OTHER_SEED = 77  # of batches that were not calibrated on


def _parameters(*, refused: bool) -> list[Any]:
    rows = []
    for name, row in SITUATIONS.items():
        marks = [] if row.default else [pytest.mark.slow]
        if bool(row.refused) is refused:
            rows.append(pytest.param(name, id=name, marks=marks))
    return rows


def options(name: str, output: Path, budget: Budget | None = None) -> RunOptions:
    source = SourceOptions(f"{HERE}.network:{name}", data=f"{HERE}.data:{name}")
    folder = FolderOptions(output, report=False)
    return RunOptions(source, folder, budget or exact_budget(source))


@pytest.mark.parametrize("name", _parameters(refused=False))
def test_compresses_right(name: str, tmp_path: Path) -> None:
    row = SITUATIONS[name]
    output = tmp_path / "run"
    result = run(options(name, output))
    left = {x.name: x.reason for x in result.profile.left_alone if x.matrix_params}
    assert unexpected(result, left, row.left, row.says) == []
    assert {c.name: c.detail for c in result.report.checks if c.passed is False} == {}
    dense = call_factory(f"{HERE}.network:{name}").eval()
    small = lrcompress.load(output).eval()
    dtype = next(p.dtype for p in dense.parameters())
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    for batch in row.batches(OTHER_SEED)[:2]:
        for size in (len(next(iter(batch.values()))), 3, 1):
            part = {n: t[:size] for n, t in batch.items()}
            own = {n: t.to(dtype) if t.is_floating_point() else t for n, t in part.items()}
            wanted = outputs_of(dense, own)
            assert apart(outputs_of(small, own), wanted) <= row.tolerance
            assert apart(graph_outputs(session, part), wanted) <= row.tolerance
    changed = [x.name for x in result.plan.layers if not isinstance(x.structure, Dense)]
    unchanged = [x.name for x in result.plan.layers if isinstance(x.structure, Dense)]
    assert (len(changed), unchanged) == (row.layers, [])


@pytest.mark.parametrize("name", _parameters(refused=True))
def test_is_refused(name: str, tmp_path: Path) -> None:
    row = SITUATIONS[name]
    with pytest.raises(LrcompressError) as caught:
        run(options(name, tmp_path / "run", Budget.parse("60%")))
    assert row.refused in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "run" / "profile").exists() == row.late
