"""Folders of many architectures: each compresses right, or is left alone or refused by name.

One in LRCOMPRESS_ARCHITECTURES (3) of those that compress is tried, evenly over the list; 1: all.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest

import lrcompress
from adversarial.situations.checks import apart, exact_budget, graph_outputs, outputs_of, unexpected
from adversarial.situations.folders import ARCHITECTURES
from lrcompress.errors import LrcompressError
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.sources.models import load_model
from lrcompress.structures import Dense

ONE_IN = int(os.environ.get("LRCOMPRESS_ARCHITECTURES", "3"))


def _parameters(*, refused: bool) -> list[Any]:
    names = [name for name, row in ARCHITECTURES.items() if bool(row.refused) is refused]
    return [
        pytest.param(name, id=name, marks=[] if ARCHITECTURES[name].default else [pytest.mark.slow])
        for place, name in enumerate(names)
        if refused or place % ONE_IN == 0 or ARCHITECTURES[name].default
    ]


def source_of(name: str, scratch: Path) -> SourceOptions:
    row = ARCHITECTURES[name]
    row.save(scratch / "dense")
    np.savez(scratch / "data.npz", **{n: t.numpy() for n, t in row.batch(0).items()})
    return SourceOptions(str(scratch / "dense"), data=str(scratch / "data.npz"))


@pytest.mark.parametrize("name", _parameters(refused=False))
def test_compresses_right(name: str, tmp_path: Path) -> None:
    row = ARCHITECTURES[name]
    source = source_of(name, tmp_path)
    output = tmp_path / "run"
    budget = exact_budget(source)
    result = run(RunOptions(source, FolderOptions(output, report=False), budget))
    assert {c.name: c.detail for c in result.report.checks if c.passed is False} == {}
    left = {x.kind: x.reason for x in result.profile.left_alone if x.matrix_params}
    assert unexpected(result, left, row.left, row.says) == []
    unchanged = [x.name for x in result.plan.layers if isinstance(x.structure, Dense)]
    unchanged = [n for n in unchanged if "token_type" not in n]  # all tokens are of one type
    assert len(unchanged) <= row.unchanged, unchanged
    dense = load_model(source.model).module
    small = lrcompress.load(output).eval()
    session = onnxruntime.InferenceSession(str(output / "model.onnx"))
    batch = row.batch(77)
    for size in (16, 1):
        part = {n: t[:size] for n, t in batch.items()}
        wanted = outputs_of(dense, part)
        assert apart(outputs_of(small, part), wanted) <= row.tolerance
        assert apart(graph_outputs(session, part), wanted) <= row.tolerance


@pytest.mark.parametrize("name", _parameters(refused=True))
def test_is_refused(name: str, tmp_path: Path) -> None:
    row = ARCHITECTURES[name]
    source = source_of(name, tmp_path)
    with pytest.raises(LrcompressError) as caught:
        run(RunOptions(source, FolderOptions(tmp_path / "run", report=False), Budget.parse("60%")))
    assert row.refused in str(caught.value)
    assert (tmp_path / "run" / "profile").exists() == row.late
