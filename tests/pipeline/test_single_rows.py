"""Weights with a single row or column are stored in number formats like any other."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch
from single_rows import SingleRows, batches, build

import lrcompress
from lrcompress.compression.compress import CompressOptions
from lrcompress.number_formats import parse_format
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.options import ProfileOptions
from lrcompress.structures import Dense, Quantised
from lrcompress.structures.stored_codes import stored_weights

pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
NAMES = ("levels", "scale", "depthwise", "wide", "score")


def options(output: Path, *formats: str) -> RunOptions:
    return RunOptions(
        source=SourceOptions("single_rows:build", data="single_rows:batches"),
        folder=FolderOptions(output, report=False),
        budget=Budget.parse("bytes=90%" if formats else "params=90%"),
        profile=ProfileOptions(formats=formats),
        plan=PlanOptions(structures=("dense", "low_rank"), formats=formats),
        rounds=0,
        compress=CompressOptions(refit=False),
    )


@pytest.mark.parametrize("text", ["fp16", "int8/128", "int4/32"])
def test_they_are_stored_as_their_format_rounds_them(text: str, tmp_path: Path) -> None:
    asked = options(tmp_path / "run", text)
    result = run(replace(asked, plan=replace(asked.plan, structures=("dense",))))
    kind = parse_format(text)
    assert result.plan.structures == dict.fromkeys(NAMES, Quantised(Dense(), (kind,)))
    assert [check for check in result.report.checks if check.passed is False] == []
    module = lrcompress.load(tmp_path / "run")
    assert isinstance(module, SingleRows)
    assert {x.name for x in stored_weights(module)} == {f"{name}.weight" for name in NAMES}
    dense = build().eval()
    for name in NAMES:
        weight = dense.get_submodule(name).weight.detach()
        stored = module.get_submodule(name).weight
        # A step of the full range is 1/127 or 1/7 of the largest weight; feedback moves a weight by
        # a few steps
        steps = {"fp16": 2.0**-11, "int8/128": 4 / 127, "int4/32": 4 / 7}[text]
        assert float((stored - weight).abs().max()) <= steps * float(weight.abs().max())
    batch = batches()[1]
    session = onnxruntime.InferenceSession(str(tmp_path / "run" / "model.onnx"))
    (graph,) = session.run(None, {name: tensor.numpy() for name, tensor in batch.items()})
    with torch.no_grad():
        wanted = module(**batch).numpy()
    # Products of blocks round their inputs to 8 bits, 1/254 of the largest one in a block, three
    # times in a row; the checks above compare the graph with exact products too
    assert np.abs(graph - wanted).max() <= 4 * 3 / 254 * np.abs(wanted).max()


def test_without_formats_they_stay_as_they_have_no_smaller_rank(tmp_path: Path) -> None:
    result = run(replace(options(tmp_path / "run"), to_onnx=False))
    assert [x.name for x in result.plan.layers] == ["wide"]
    reasons = {x.name: x.reason for x in result.report.left_alone}
    assert reasons == dict.fromkeys(
        set(NAMES) - {"wide"}, "a weight with a single row or column has no smaller rank"
    )


def test_a_layer_that_takes_no_format_says_so(tmp_path: Path) -> None:
    result = run(replace(options(tmp_path / "run", "int8-dynamic"), to_onnx=False))
    reasons = {x.name: x.reason for x in result.report.left_alone}
    assert set(reasons) == {"levels", "depthwise"}
    assert all("it takes none of the formats int8-dynamic" in x for x in reasons.values())
