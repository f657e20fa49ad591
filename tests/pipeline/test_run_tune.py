"""Tuning as a stage of a run: resumable, equal to the bit, undone and done again."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from run_files import copied, digests, reused
from torch import Tensor, nn

import lrcompress
from lrcompress.checkpoint import CheckpointFolder, Entry
from lrcompress.errors import DataError, LrcompressError, TuneError
from lrcompress.network.batches import Batch
from lrcompress.network.call import call
from lrcompress.pipeline import (
    NO_GRAPH,
    FolderOptions,
    RunOptions,
    RunResult,
    SourceOptions,
    TuneRequest,
    TuneRunOptions,
    run,
    run_tune,
)
from lrcompress.planning.budget import Budget
from lrcompress.tuning.losses import TUNING_OBJECTIVES
from lrcompress.tuning.optimisers import OPTIMISERS
from lrcompress.tuning.options import TuneOptions
from lrcompress_cli import main
from lrcompress_cli.options.tune import (
    ADAPTER_NAMES,
    OPTIMISER_NAMES,
    REGULARISER_NAMES,
    TUNING_OBJECTIVE_NAMES,
)

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
SOURCE = SourceOptions("tuning_subject:build", data="tuning_subject:batches")
DATA = SourceOptions("", data="tuning_subject:batches")
REQUEST = TuneRequest(TuneOptions(steps=20))
STAGES = ["load", "profile", "plan", "compress", "tune", "export", "verify"]
FACTORY = ["tuning_subject:build", "--data", "tuning_subject:batches"]


def options(output: Path, tune: TuneRequest | None = REQUEST, **changes: Any) -> RunOptions:
    fields: dict[str, Any] = {
        "source": SOURCE,
        "folder": FolderOptions(output, command="lrcompress compress ...", report=False),
        "budget": Budget.parse("40%"),
        "tune": tune,
    }
    return RunOptions(**{**fields, **changes})


def alone(output: Path, request: TuneRequest = REQUEST, **changes: Any) -> TuneRunOptions:
    fields: dict[str, Any] = {
        "source": DATA,
        "folder": FolderOptions(output, command="lrcompress tune ...", report=False),
        "request": request,
    }
    return TuneRunOptions(**{**fields, **changes})


def weights(root: Path) -> Mapping[str, Tensor]:
    return lrcompress.load(root).state_dict()


def squared(module: nn.Module, batch: Batch) -> Tensor:
    """A task's loss, named `test_run_tune:squared`."""
    scores = call(module, batch)
    assert isinstance(scores, Tensor)
    return scores.square().mean()


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run without tuning."""
    output = tmp_path_factory.mktemp("runs") / "plain"
    run(options(output, None))
    return output


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """A run with tuning, and what it returned."""
    output = tmp_path_factory.mktemp("runs") / "tuned"
    return output, run(options(output))


@pytest.fixture(scope="module")
def tuned_later(
    plain: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, RunResult, dict[str, str]]:
    """A finished run that was tuned on its own, what that returned, and its files."""
    output = copied(plain, tmp_path_factory.mktemp("runs") / "tuned-later")
    result = run_tune(alone(output))
    return output, result, digests(output)


# ---- in a run -------------------------------------------------------------------------------


def test_a_tuned_run_is_verified_closer_and_no_larger(
    plain: Path, tuned: tuple[Path, RunResult]
) -> None:
    output, result = tuned
    report = result.report
    assert [stage.name for stage in report.stages] == STAGES
    assert report.verified
    assert report.tuning is not None
    assert report.tuning.improved
    assert report.fidelity is not None
    assert report.fidelity["kl divergence, held out: after tuning"] == report.tuning.end
    before, after = weights(plain), weights(output)
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    assert any(not after[name].equal(before[name]) for name in after)
    assert report.after is not None
    assert report.after.params == sum(p.numel() for p in lrcompress.load(output).parameters())
    record = json.loads((output / "lrcompress.json").read_text())
    assert record["extra"]["tune"]["end"] == report.tuning.end
    assert json.loads((output / "report.json").read_text())["tuning"]["losses"] == []


def test_a_finished_run_is_reused_whole(tuned: tuple[Path, RunResult], tmp_path: Path) -> None:
    output = copied(tuned[0], tmp_path / "moved")
    before = digests(output)
    result = run(options(output))
    assert reused(result) == STAGES[1:]
    assert digests(output) == before
    assert result.report.tuning == tuned[1].report.tuning


def test_two_runs_give_the_same_bits(tuned: tuple[Path, RunResult], tmp_path: Path) -> None:
    run(options(tmp_path / "again", to_onnx=False))
    expected = digests(tuned[0])
    made = {"model.onnx", "stages.json"}  # of the export
    assert {name: d for name, d in digests(tmp_path / "again").items() if name not in made} == {
        name: d for name, d in expected.items() if name not in made
    }


@pytest.mark.slow
def test_without_the_option_the_weights_are_untuned_again(
    plain: Path, tuned: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(tuned[0], tmp_path / "moved")
    result = run(options(output, None))
    assert reused(result) == ["profile", "plan"]
    assert digests(output) == digests(plain)
    assert result.report.tuning is None


@pytest.mark.slow
def test_other_options_tune_the_untuned_weights(
    tuned: tuple[Path, RunResult], tmp_path: Path
) -> None:
    other = replace(REQUEST, options=replace(REQUEST.options, steps=10))
    output = copied(tuned[0], tmp_path / "moved")
    run(options(output, other))
    run(options(tmp_path / "fresh", other))
    assert digests(output) == digests(tmp_path / "fresh")


def test_a_run_can_be_tuned_later_to_the_same_weights(
    plain: Path, tuned: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(plain, tmp_path / "moved")
    result = run(options(output))
    assert reused(result) == ["profile", "plan", "compress"]
    assert digests(output) == digests(tuned[0])


# ---- over a finished run --------------------------------------------------------------------


def test_a_finished_run_is_tuned_to_the_same_bits_as_in_one_go(
    tuned_later: tuple[Path, RunResult, dict[str, str]], tuned: tuple[Path, RunResult]
) -> None:
    _, result, files = tuned_later
    assert result.report.tuning == tuned[1].report.tuning
    assert result.report.verified
    for name in ("model.safetensors", "model.onnx", "lrcompress.json"):
        assert files[name] == digests(tuned[0])[name]


def test_tuning_again_changes_nothing_and_other_options_go_on(
    tuned_later: tuple[Path, RunResult, dict[str, str]], tmp_path: Path
) -> None:
    finished, first, before = tuned_later
    output = copied(finished, tmp_path / "moved")
    again = run_tune(alone(output))
    assert digests(output) == before
    assert set(reused(again)) >= {"tune", "export", "verify"}
    further = replace(REQUEST, options=replace(REQUEST.options, steps=15))
    second = run_tune(alone(output, further))
    assert first.report.tuning is not None
    assert second.report.tuning is not None
    assert second.report.tuning.start == first.report.tuning.end
    assert second.report.tuning.end <= second.report.tuning.start
    third = digests(output)
    assert run_tune(alone(output, further)).report.tuning == second.report.tuning
    assert digests(output) == third


@pytest.mark.slow
def test_the_file_is_exported_as_it_was(tmp_path: Path) -> None:
    export = lrcompress.ExportOptions(precision="fp16")
    output = tmp_path / "half"
    run(options(output, None, export=export))
    size = (output / "model.onnx").stat().st_size
    report = run_tune(alone(output)).report
    assert report.verified
    # Fresh norms are all alike and stored once, tuned ones are not; float32 would take half more
    assert (output / "model.onnx").stat().st_size < 1.25 * size


class Stopped(Exception):
    pass


def resumes(output: Path, *, whole: bool) -> Callable[[], RunResult]:
    """The command that was stopped: a whole run, before its export, or a tuning on its own."""
    if whole:
        return lambda: run(options(output, to_onnx=False))
    return lambda: run_tune(alone(output))


def names(*, whole: bool) -> tuple[str, ...]:
    """The files to compare: a whole run is stopped before its export, a tuning makes its graph."""
    weights = ("model.safetensors", "lrcompress.json")
    return weights if whole else (*weights, "model.onnx")


@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_stopped_tuning_is_resumed_to_the_same_bits(
    plain: Path,
    tuned: tuple[Path, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    whole: bool,
) -> None:
    output = copied(plain, tmp_path / "moved")
    put = CheckpointFolder.put

    def stop(self: CheckpointFolder, kind: str, name: str, entry: Entry) -> None:
        put(self, kind, name, entry)
        if kind == "tuning":
            raise Stopped

    again = resumes(output, whole=whole)
    monkeypatch.setattr(CheckpointFolder, "put", stop)
    with pytest.raises(Stopped):
        again()
    monkeypatch.undo()
    assert list((output / "work").rglob("tuning.safetensors"))
    again()
    assert not (output / "work").exists()
    for name in names(whole=whole):
        assert digests(output)[name] == digests(tuned[0])[name]


@pytest.mark.parametrize("whole", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_a_stop_between_the_weights_and_the_books_is_resumed_to_the_same_bits(
    plain: Path,
    tuned: tuple[Path, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    whole: bool,
) -> None:
    from lrcompress.pipeline.run_folder import RunFolder

    output = copied(plain, tmp_path / "moved")
    finish = RunFolder.finish

    def stop(self: RunFolder, stage: str, *rest: Any, **forget: Any) -> None:
        if stage == "tune":
            raise Stopped
        finish(self, stage, *rest, **forget)

    again = resumes(output, whole=whole)
    monkeypatch.setattr(RunFolder, "finish", stop)
    with pytest.raises(Stopped):
        again()
    monkeypatch.undo()
    again()
    for name in names(whole=whole):
        assert digests(output)[name] == digests(tuned[0])[name]


@pytest.mark.parametrize("writes", [pytest.param(1, marks=pytest.mark.slow), 2])
def test_a_stop_between_the_weights_and_their_record_is_resumed_to_the_same_bits(
    writes: int,
    plain: Path,
    tuned: tuple[Path, RunResult],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from lrcompress.sources import compressed_model as models

    output = copied(plain, tmp_path / "moved")
    done = iter(range(writes))

    def stopped(write: Callable[..., None]) -> Callable[..., None]:
        def after(*arguments: Any) -> None:
            if next(done, None) is None:
                raise Stopped
            write(*arguments)

        return after

    monkeypatch.setattr(models, "write_json", stopped(models.write_json))
    monkeypatch.setattr(models, "write_tensors", stopped(models.write_tensors))
    with pytest.raises(Stopped):
        run_tune(alone(output))
    monkeypatch.undo()
    name = "model.safetensors"
    assert digests(output)[name] == digests(plain if writes == 1 else tuned[0])[name]
    run_tune(alone(output))
    for name in ("model.safetensors", "model.onnx", "lrcompress.json"):
        assert digests(output)[name] == digests(tuned[0])[name]


@pytest.mark.slow
def test_a_killed_tuning_ends_with_the_same_bits(plain: Path, tmp_path: Path) -> None:
    request = replace(REQUEST, options=replace(REQUEST.options, steps=3000))
    expected = copied(plain, tmp_path / "expected")
    run_tune(alone(expected, request))
    output = copied(plain, tmp_path / "killed")
    command = [sys.executable, "-m", "lrcompress_cli.main", "tune", str(output), *FACTORY[1:]]
    command += ["--steps", "3000", "--no-report", "--trust-factory", FACTORY[0]]
    for _ in range(2):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        until = time.monotonic() + 120
        while not list(output.rglob("tuning.safetensors")) and time.monotonic() < until:
            time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    subprocess.run(command, check=True, capture_output=True)
    for name in ("model.safetensors", "model.onnx", "lrcompress.json"):
        assert digests(output)[name] == digests(expected)[name]


# ---- other objectives and teachers ----------------------------------------------------------


def test_a_task_is_imported_and_trained(plain: Path, tmp_path: Path) -> None:
    output = copied(plain, tmp_path / "moved")
    request = TuneRequest(replace(REQUEST.options, objective="task"), "test_run_tune:squared")
    report = run(options(output, request, to_onnx=False)).report
    assert report.tuning is not None
    assert report.tuning.measure == "task loss"
    assert report.tuning.improved


def test_an_adapter_is_merged_in_the_metric_of_the_run(plain: Path, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    output = copied(plain, tmp_path / "moved")
    request = TuneRequest(replace(REQUEST.options, adapter="lora", adapter_rank=2))
    report = run_tune(alone(output, request)).report
    assert report.verified
    assert report.tuning is not None
    assert report.tuning.end <= report.tuning.start
    assert set(report.tuning.merge_losses) <= {layer.name for layer in report.layers}
    shapes = {k: v.shape for k, v in weights(plain).items()}
    assert {k: v.shape for k, v in weights(output).items()} == shapes


def test_the_dense_model_may_be_named(
    plain: Path, tuned_later: tuple[Path, RunResult, dict[str, str]], tmp_path: Path
) -> None:
    output = copied(plain, tmp_path / "moved")
    source = replace(SOURCE, model="tuning_subject:build")
    named = run_tune(alone(output, source=source))
    assert tuned_later[1].report.tuning == named.report.tuning


def test_another_network_in_the_place_of_the_dense_one_is_refused(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tuning_subject

    output = copied(plain, tmp_path / "moved")
    before = digests(output)

    def other() -> nn.Module:
        torch.manual_seed(99)
        return build()

    build = tuning_subject.build
    monkeypatch.setattr(tuning_subject, "build", other)
    with pytest.raises(TuneError, match="--reference"):
        run_tune(alone(output))
    assert digests(output) == before


def test_a_task_that_cannot_be_imported_is_refused(plain: Path, tmp_path: Path) -> None:
    output = copied(plain, tmp_path / "moved")
    for broken in ("nothing:here", "test_run_tune:TESTS"):
        request = TuneRequest(replace(REQUEST.options, objective="task"), broken)
        with pytest.raises(TuneError):
            run_tune(alone(output, request))
    assert run_tune(alone(output)).report.verified  # the folder is none the worse


def test_what_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="lrcompress compress"):
        run_tune(alone(tmp_path))
    with pytest.raises(LrcompressError, match="--data"):
        options(tmp_path, source=SourceOptions("tuning_subject:build"))
    with pytest.raises(TuneError, match="--data"):
        TuneRunOptions(SourceOptions(""), FolderOptions(tmp_path))


# ---- the command ----------------------------------------------------------------------------


def test_the_command_prints_the_documented_object(plain: Path, tmp_path: Path) -> None:
    output = copied(plain, tmp_path / "moved")
    arguments = ["tune", str(output), *FACTORY[1:], "--steps", "12", "--json", "--no-report"]
    result = CliRunner().invoke(main.main, arguments)
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    text = (TESTS.parent / "docs" / "cli.md").read_text(encoding="utf-8")
    section = text.split("## lrcompress tune")[1].split("```json")[1].split("```")[0]
    documented = json.loads(section)
    assert record.keys() == documented.keys()
    assert record["tuning"].keys() == documented["tuning"].keys()
    assert record["tuning"]["steps"] == 12


def test_compress_tunes_with_one_flag(tmp_path: Path) -> None:
    output = tmp_path / "out"
    arguments = ["compress", *FACTORY, "--budget", "40%", "-o", str(output), "--tune"]
    result = CliRunner().invoke(main.main, [*arguments, "--tune-steps", "15", "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)
    assert record["tuning"]["steps"] == 15
    assert record["verified"]
    page = (output / "report.html").read_text(encoding="utf-8")
    assert '"measure": "kl divergence"' in page
    shown = CliRunner().invoke(main.main, [*arguments, "--tune-steps", "15"])
    assert "tuning: kl divergence" in shown.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["tune", "."],
        ["tune", "/nowhere", "--data", "x.txt"],
        ["tune", ".", "--data", "x.txt", "--minutes", "0"],
        ["compress", "tuning_subject:build", "--budget", "50%", "-o", "out", "--tune"],
    ],
)
def test_usage_errors_have_exit_code_2(arguments: list[str]) -> None:
    assert CliRunner().invoke(main.main, arguments).exit_code == 2


def test_literal_choices_are_the_library_s_tables() -> None:
    from lrcompress.tuning.adapters import ADAPTERS
    from lrcompress.tuning.regularisers import REGULARISERS

    assert set(TUNING_OBJECTIVE_NAMES) == set(TUNING_OBJECTIVES)
    assert set(OPTIMISER_NAMES) == set(OPTIMISERS)
    assert set(ADAPTER_NAMES) == set(ADAPTERS)
    assert set(REGULARISER_NAMES) == set(REGULARISERS)


def test_a_tuning_without_its_export_replaces_the_weights_and_removes_the_old_graph(
    plain: Path, tmp_path: Path
) -> None:
    output = copied(plain, tmp_path / "out")
    report = run_tune(replace(alone(output), to_onnx=False)).report
    assert report.tuning is not None
    assert NO_GRAPH in report.warnings
    assert not report.verified
    assert not (output / "model.onnx").exists()
    assert run_tune(alone(output)).report.verified  # the same tuning is not done again
