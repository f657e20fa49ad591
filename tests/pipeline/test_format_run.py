"""A whole run in number formats: smaller files, the same bits again, and the same outputs."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from run_files import digests, reused
from safetensors.torch import load_file
from structured_network import batches, build, build_bare

import lrcompress
from lrcompress.errors import ModelError
from lrcompress.number_formats import Int4
from lrcompress.pipeline import (
    FolderOptions,
    RunOptions,
    RunResult,
    SourceOptions,
    preview,
    run,
    run_profile,
)
from lrcompress.planning.budget import Budget
from lrcompress.planning.default_formats import FOR_BYTES
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.options import ProfileOptions
from lrcompress.structures import Quantised, in_format
from lrcompress.structures.stored_codes import stored_weights

pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
SHARE = 0.25


def options(output: Path, formats: tuple[str, ...] = FOR_BYTES) -> RunOptions:
    return RunOptions(
        source=SourceOptions("structured_network:build", data="structured_network:batches"),
        folder=FolderOptions(output, report=False),
        budget=Budget("bytes", SHARE, relative=True, scope="compressible"),
        profile=ProfileOptions(formats=formats),
        rounds=1,
        to_onnx=False,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    output = tmp_path_factory.mktemp("formats") / "run"
    return output, run(options(output))


def test_a_run_stores_its_weights_in_formats(finished: tuple[Path, RunResult]) -> None:
    output, result = finished
    formats = {str(f) for x in result.plan.layers for f in in_format(x.structure)[1]}
    assert formats
    assert formats <= set(FOR_BYTES)
    assert result.plan.within_budget
    rows = json.loads((output / "plan.json").read_text())["layers"]
    shown = {text for row in rows for text in row["structure"].get("format", "").split(", ")}
    assert shown - {""} == formats


def test_its_file_holds_the_bytes_that_the_plan_counts(finished: tuple[Path, RunResult]) -> None:
    """Kernels take whole blocks, which the plan counts and the file of torch does not hold."""
    output, result = finished
    held = load_file(output / "model.safetensors")
    stored = sum(t.nbytes for name, t in held.items() if not name.endswith("bias"))
    counted = sum(x.structure.nbytes(x.spec, 4) for x in result.plan.layers)
    assert stored <= counted
    assert counted <= SHARE * sum(4 * x.dense_params for x in result.plan.layers)
    dense = sum(p.nbytes for p in build().parameters())
    assert sum(t.nbytes for t in held.values()) < 0.4 * dense


def test_a_resumed_run_ends_with_the_same_bits(
    finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output, _ = finished
    before = digests(output)
    again = run(options(output))
    assert {"profile", "plan", "compress"} <= set(reused(again))
    assert digests(output) == before
    fresh = tmp_path / "fresh"
    run(options(fresh))
    names = ("model.safetensors", "plan.json")
    assert {n: digests(fresh)[n] for n in names} == {n: before[n] for n in names}


def test_the_folder_loads_as_it_was_saved(finished: tuple[Path, RunResult]) -> None:
    output, result = finished
    module = lrcompress.load(output)
    held = load_file(output / "model.safetensors")
    state = module.state_dict()
    assert held.keys() == state.keys()
    for name, tensor in state.items():
        assert tensor.dtype is held[name].dtype
        assert torch.equal(tensor, held[name])
    names = {x.name for x in result.plan.layers if isinstance(x.structure, Quantised)}
    owners = {w.name.rpartition(".")[0].removesuffix(".up").removesuffix(".down")
              for w in stored_weights(module)}  # fmt: skip
    assert owners == names
    x = batches()[0]["x"]
    dense = build().eval()
    with torch.no_grad():
        out = module(x)
        assert torch.equal(lrcompress.load(output)(x), out)
        assert float((out - dense(x)).norm() / dense(x).norm()) < 0.2


def test_formats_keep_more_than_ranks_in_as_many_bytes(
    finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    _, result = finished
    ranks = run(options(tmp_path / "run", formats=()))
    assert ranks.plan.bytes <= 1.3 * result.plan.bytes
    (formats, alone) = (
        next(row.measured for row in made.report.tried if row.kept) for made in (result, ranks)
    )
    assert formats < 0.5 * alone


def test_an_edited_format_is_carried_out(finished: tuple[Path, RunResult], tmp_path: Path) -> None:
    output, _ = finished
    plan = json.loads((output / "plan.json").read_text())
    wanted = {
        "up": {"type": "dense", "format": "int8-dynamic"},
        "down": {"type": "low_rank", "rank": 20, "format": "int8, fp16"},
        "head": {"type": "low_rank", "rank": 7, "format": "fp32, int8"},
    }
    for row in plan["layers"]:
        row["structure"] = wanted[row["name"]]
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(plan))
    asked = replace(
        options(tmp_path / "run"),
        budget=None,
        plan_file=path,
        profile_folder=output / "profile",
        plan=PlanOptions(),
    )
    result = run(asked)
    module = lrcompress.load(tmp_path / "run")
    formats = {stored.name: str(stored.format) for stored in stored_weights(module)}
    assert formats == {"up.weight": "int8-dynamic", "down.up.weight": "int8/128",
                       "down.down.weight": "fp16", "head.up.weight": "fp32",
                       "head.down.weight": "int8/128"}  # fmt: skip
    assert any("predicted" in w and "down" in w for w in result.report.warnings)
    x = batches()[0]["x"]
    with torch.no_grad():
        error = (module(x) - build().eval()(x)).norm() / build().eval()(x).norm()
    assert float(error) < 0.5


def test_a_network_may_have_no_other_weights_than_stored_ones(tmp_path: Path) -> None:
    """Then it has buffers, and no parameters at all."""
    asked = replace(
        options(tmp_path / "run", formats=("int4/32",)),
        source=SourceOptions("structured_network:build_bare", data="structured_network:batches"),
        plan=PlanOptions(formats=("int4/32",)),
        rounds=0,
    )
    result = run(asked)
    assert {in_format(x.structure)[1] for x in result.plan.layers} == {(Int4(),)}
    module = lrcompress.load(tmp_path / "run")
    assert not list(module.parameters())
    x, dense = batches()[0]["x"], build_bare().eval()
    with torch.no_grad():
        assert float((module(x) - dense(x)).norm() / dense(x).norm()) < 0.2


def test_a_folder_with_formats_is_not_compressed_again(
    finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    """The message names the weights' formats, the reason and the network to compress instead."""
    output, _ = finished
    stored = list(stored_weights(lrcompress.load(output)))
    asked = replace(
        options(tmp_path / "again"),
        source=SourceOptions(
            str(output),
            data="structured_network:batches",
            trust_factory="structured_network:build",
        ),
    )
    begun = (
        lambda: run(asked),
        lambda: preview(asked),
        lambda: run_profile(asked.source, asked.folder),
    )
    for start in begun:
        with pytest.raises(ModelError) as caught:
            start()
        said = str(caught.value)
        assert said.startswith(f"{output}: {len(stored)} weights are already stored in number form")
        assert all(str(weight.format) in said for weight in stored)
        assert "the errors of both compressions would add up" in said
        assert said.endswith(
            "compress the original network, structured_network:build, at the smaller budget"
        )
    assert not (tmp_path / "again").exists()
    with pytest.raises(ModelError, match=r"compress the original network at the smaller budget$"):
        lrcompress.profile(lrcompress.load(output), batches())
