"""Tuning of a run whose weights are stored in number formats."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import copied
from torch import Tensor

import lrcompress
from lrcompress.pipeline import (
    FolderOptions,
    RunOptions,
    SourceOptions,
    TuneRequest,
    TuneRunOptions,
    run,
    run_tune,
)
from lrcompress.planning.budget import Budget
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.options import ProfileOptions
from lrcompress.structures.stored_codes import stored_weights
from lrcompress.tuning.options import TuneOptions

pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
FORMATS = ("int8/16", "int4/16", "int2/16")
REQUEST = TuneRequest(TuneOptions(steps=20))


def options(output: Path, tune: TuneRequest | None) -> RunOptions:
    return RunOptions(
        source=SourceOptions("tuning_subject:build", data="tuning_subject:batches"),
        folder=FolderOptions(output, command="lrcompress compress ...", report=False),
        budget=Budget.parse("bytes=40%"),
        profile=ProfileOptions(formats=FORMATS),
        plan=PlanOptions(formats=FORMATS),
        tune=tune,
        to_onnx=False,
    )


def alone(output: Path, **changes: Any) -> TuneRunOptions:
    return TuneRunOptions(
        source=SourceOptions("", data="tuning_subject:batches"),
        folder=FolderOptions(output, command="lrcompress tune ...", report=False),
        request=replace(REQUEST, options=replace(REQUEST.options, **changes)),
        to_onnx=False,
    )


def weights(root: Path) -> dict[str, Tensor]:
    return dict(lrcompress.load(root).state_dict())


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "plain"
    run(options(output, None))
    return output


def test_a_run_is_tuned_in_one_go_or_later_to_the_same_bits_and_size(
    plain: Path, tmp_path: Path
) -> None:
    at_once, later = tmp_path / "at-once", copied(plain, tmp_path / "later")
    run(options(at_once, REQUEST))
    report = run_tune(alone(later)).report.tuning
    assert report is not None
    files = [root / "model.safetensors" for root in (plain, at_once, later)]
    assert files[1].read_bytes() == files[2].read_bytes()
    assert files[1].stat().st_size == files[0].stat().st_size
    before, after = weights(plain), weights(later)
    changed = any(not torch.equal(before[name], after[name]) for name in before)
    assert changed is report.improved
    formats = [
        {weight.name: str(weight.format) for weight in stored_weights(lrcompress.load(root))}
        for root in (plain, later)
    ]
    assert formats[0] == formats[1]
    assert formats[0]


def test_an_adapter_is_rounded_in_the_metric_of_the_run(plain: Path, tmp_path: Path) -> None:
    tuned = copied(plain, tmp_path / "tuned")
    report = run_tune(alone(tuned, adapter="lora", adapter_rank=2)).report
    assert report is not None
    size = (tuned / "model.safetensors").stat().st_size
    assert size == (plain / "model.safetensors").stat().st_size
