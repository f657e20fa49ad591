"""A run over its folder: stopped anywhere, resumed, edited, shared, and equal to the bit.

LRCOMPRESS_KILLS is how often the slow test kills a run at a random time, once in each of as many
equal parts of the run (default 4).
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from run_files import copied, digests, reused

import lrcompress
from lrcompress.errors import DataError, ExportError, LrcompressError, ModelError, PlanError
from lrcompress.pipeline import (
    NO_GRAPH,
    FolderOptions,
    RunOptions,
    RunResult,
    SourceOptions,
    file_size,
    find_profile,
    preview,
    promised_budget,
    record_latency,
    run,
    run_profile,
)
from lrcompress.pipeline import run_folder as folders
from lrcompress.pipeline.lock import LOCK_NAME, locked
from lrcompress.planning.budget import Budget
from lrcompress.planning.plan import Plan

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
KILLS = int(os.environ.get("LRCOMPRESS_KILLS", "4"))
SOURCE = SourceOptions("small_network:build", data="small_network:batches")
STAGES = ["load", "profile", "plan", "compress", "export", "verify"]


def options(output: Path, budget: str | None = "60%", **changes: Any) -> RunOptions:
    fields: dict[str, Any] = {
        "source": SOURCE,
        "folder": FolderOptions(output, command="lrcompress compress ...", report=False),
        "budget": None if budget is None else Budget.parse(budget),
    }
    return RunOptions(**{**fields, **changes})


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    output = tmp_path_factory.mktemp("runs") / "unbroken"
    return output, run(options(output))


@pytest.fixture(scope="module")
def without_graph(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    """The same run before its export, which takes most of the time of a small network's run."""
    output = tmp_path_factory.mktemp("runs") / "without-graph"
    return output, run(options(output, to_onnx=False))


# ---- what a run is --------------------------------------------------------------------------


def test_a_run_is_verified_and_meets_its_budget(unbroken: tuple[Path, RunResult]) -> None:
    output, result = unbroken
    assert [stage.name for stage in result.report.stages] == STAGES
    assert reused(result) == []
    assert result.report.verified
    assert result.plan.params <= 0.6 * result.plan.dense_params
    module = lrcompress.load(output)
    assert sum(p.numel() for p in module.parameters()) == result.plan.params
    (measured,) = [d for d in result.report.divergences if d.where == "calibration"]
    assert measured.measured > 0


def test_two_runs_give_the_same_bits(unbroken: tuple[Path, RunResult], tmp_path: Path) -> None:
    run(options(tmp_path / "again"))
    assert digests(tmp_path / "again") == digests(unbroken[0])


def test_a_finished_run_is_reused_whole(unbroken: tuple[Path, RunResult], tmp_path: Path) -> None:
    output = copied(unbroken[0], tmp_path / "moved")
    before = digests(output)
    result = run(options(output))
    assert reused(result) == STAGES[1:]
    assert digests(output) == before
    assert result.report.after == unbroken[1].report.after
    assert result.report.checks == unbroken[1].report.checks


def test_a_rerun_keeps_what_was_timed_before(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(unbroken[0], tmp_path / "moved")
    assert record_latency(output, 2.0, 1.0, made_from_it=True) == "recorded"
    taken = {stage.name: stage.seconds for stage in unbroken[1].report.stages}
    report = run(options(output)).report
    assert {s.name: s.seconds for s in report.stages if s.reused} == {
        name: seconds for name, seconds in taken.items() if name != "load"
    }
    assert report.after is not None
    assert (report.before.latency_ms, report.after.latency_ms) == (2.0, 1.0)
    again = run(options(output, "70%")).report  # another file: nobody has timed it
    assert again.after is not None
    assert (again.before.latency_ms, again.after.latency_ms) == (None, None)
    assert [s.seconds for s in again.stages if s.name == "profile"] == [taken["profile"]]


def test_another_budget_redoes_the_plan_and_what_follows(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(unbroken[0], tmp_path / "moved")
    result = run(options(output, "70%", to_onnx=False))
    assert reused(result) == ["profile"]
    assert result.plan.params > unbroken[1].plan.params


def test_another_precision_redoes_the_export_only(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(unbroken[0], tmp_path / "moved")
    export = replace(options(output).export, precision="fp16")
    result = run(options(output, export=export))
    assert reused(result)[:1] == ["profile"]
    assert "export" not in reused(result)
    assert result.report.verified


def test_a_file_that_was_lost_or_damaged_is_made_again(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(unbroken[0], tmp_path / "moved")
    before = digests(output)
    (output / "model.onnx").write_bytes(b"damaged")
    (output / "model.safetensors").unlink()
    result = run(options(output))
    assert reused(result) == ["profile", "plan"]
    assert digests(output) == before


def test_reports_name_the_command_and_time_each_stage(unbroken: tuple[Path, RunResult]) -> None:
    record = json.loads((unbroken[0] / "report.json").read_text())
    assert record["command"] == "lrcompress compress ..."
    assert all(stage["seconds"] > 0 for stage in record["stages"] if stage["name"] != "load")
    assert not (unbroken[0] / "report.html").exists()


def test_the_report_says_that_nobody_gave_the_weights(unbroken: tuple[Path, RunResult]) -> None:
    assert any("the factory's own" in warning for warning in unbroken[1].report.warnings)


def test_nothing_temporary_is_left(unbroken: tuple[Path, RunResult]) -> None:
    names = {path.name for path in unbroken[0].rglob("*")}
    assert not [name for name in names if name.startswith(".") or name == "work"]


def test_what_a_killed_run_left_goes_with_the_next(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(unbroken[0], tmp_path / "moved")
    left = [".model.onnx.part", ".tmpAb12Cd", "profile/.tmp3RRe88", "profile/.profile.json.part"]
    for name in left:
        (output / name).write_bytes(b"half")
    mine = output / ".gitignore"
    mine.touch()
    run(options(output))
    assert mine.exists()
    assert not [name for name in left if (output / name).exists()]


def test_force_removes_nothing_of_a_folder_that_is_no_run(tmp_path: Path) -> None:
    (tmp_path / ".download.part").write_text("half a film")
    where = FolderOptions(tmp_path, report=False, force=True)
    run(options(tmp_path, folder=where, to_onnx=False))
    assert (tmp_path / ".download.part").read_text() == "half a film"


def test_force_leaves_a_folder_work_of_the_users_own(tmp_path: Path) -> None:
    mine = tmp_path / "work" / "mine.txt"
    mine.parent.mkdir()
    mine.write_text("a year's work")
    where = FolderOptions(tmp_path, report=False, force=True)
    run(options(tmp_path, folder=where, to_onnx=False))
    assert [path.name for path in mine.parent.iterdir()] == ["mine.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="modes are POSIX")
def test_files_can_be_read_by_those_who_may(unbroken: tuple[Path, RunResult]) -> None:
    modes = {path.stat().st_mode & 0o777 for path in unbroken[0].rglob("*") if path.is_file()}
    assert len(modes) == 1


# ---- killed ---------------------------------------------------------------------------------


DYING = """
import os, signal, sys
import torch, lrcompress.pipeline, onnxruntime, torch.onnx, lrcompress.export.tracing
sys.path.append("pipeline")
from lrcompress import atomic as files
from test_pipeline import Path, options, run

def in_child(output, dies_at):
    child = os.fork()  # before any thread has started, so that the child may start its own
    if child:
        return os.waitpid(child, 0)[1]
    count, flush = 0, files.flush
    def dying(path):
        global count
        count += path.is_file()
        if count == dies_at:
            os.kill(os.getpid(), signal.SIGKILL)  # the file is written, its name is not
        flush(path)
    files.flush = dying
    run(options(Path(output)))
    os._exit(0)

count = 0
for output in sys.argv[1:]:
    number = int(Path(output).name)
    print(number, os.WIFSIGNALED(in_child(output, number)), in_child(output, -1), flush=True)
"""


@pytest.mark.slow
def test_a_run_killed_at_any_write_resumes_to_the_same_bits(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    numbers = range(1, 14)[:: 1 if KILLS >= 13 else 3]
    outputs = [tmp_path / str(number) for number in numbers]
    command = [sys.executable, "-c", DYING, *map(str, outputs)]
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == [f"{number} True 0" for number in numbers]
    for output in outputs:
        assert digests(output) == digests(unbroken[0])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_killed_at_random_times_a_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    def command(output: Path) -> list[str]:
        arguments = ["compress", SOURCE.model, "--data", str(SOURCE.data), "--budget", "60%"]
        program = [sys.executable, "-m", "lrcompress_cli.main", *arguments]
        return [*program, "--no-report", "--quiet", "--threads", "1", "-o", str(output)]

    unbroken = tmp_path / "unbroken"
    started = time.monotonic()
    subprocess.run(command(unbroken), cwd=TESTS, check=True)
    whole_s = time.monotonic() - started

    draw = random.Random(0)
    deaths = 0
    for attempt in range(KILLS):
        output = tmp_path / str(attempt)
        # Spread evenly over the run, so that early and late stages are struck
        after_s = whole_s * (attempt + draw.random()) / KILLS
        process = subprocess.Popen(command(output), cwd=TESTS)
        try:
            process.wait(timeout=after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            deaths += process.wait() == -signal.SIGKILL
        subprocess.run(command(output), cwd=TESTS, check=True)
        assert digests(output) == digests(unbroken), f"killed after {after_s:.1f} s"
    assert deaths >= KILLS / 2, "the runs ended before they could be killed"


def test_an_interrupt_leaves_a_folder_that_resumes(
    without_graph: tuple[Path, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrcompress.compression import compress

    fit = compress.fit_layer
    fitted: list[str] = []

    def interrupted(*arguments: object) -> object:
        if len(fitted) == 2:
            raise KeyboardInterrupt
        fitted.append("layer")
        return fit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(compress, "fit_layer", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(options(tmp_path / "out", to_onnx=False))
    monkeypatch.setattr(compress, "fit_layer", lambda *a: (fitted.append("again"), fit(*a))[1])
    result = run(options(tmp_path / "out", to_onnx=False))
    assert reused(result) == ["profile", "plan"]
    factored = sum(layer.params < layer.dense_params for layer in result.plan.layers)
    assert fitted.count("again") <= factored - 2 + fitted_by_refit(result)
    assert digests(tmp_path / "out") == digests(without_graph[0])


def fitted_by_refit(result: RunResult) -> int:
    """A refit fits layers again, whatever the checkpoint holds."""
    return len(result.plan.layers) if "refit" in json.dumps(result.report.fidelity) else 0


# ---- plans by hand --------------------------------------------------------------------------


def edited(plan: Path, target: Path, change: Callable[[list[dict[str, object]]], None]) -> Path:
    value = json.loads(plan.read_text())
    change(value["layers"])
    target.write_text(json.dumps(value))
    return target


def test_a_rank_changed_by_hand_is_honoured(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    def change(layers: list[dict[str, object]]) -> None:
        layers[0]["structure"] = {"type": "low_rank", "rank": 2}

    plan = edited(unbroken[0] / "plan.json", tmp_path / "mine.json", change)
    asked = options(
        tmp_path / "out", None, plan_file=plan, profile_folder=unbroken[0], to_onnx=False
    )
    result = run(asked)
    assert result.plan.layers[0].structure == lrcompress.LowRank(2)
    module = lrcompress.load(tmp_path / "out")
    factors = module.get_submodule(result.plan.layers[0].name)
    assert factors.get_submodule("down").weight.shape[0] == 2
    assert reused(run(asked)) == STAGES[1:4]


def test_an_edited_plan_beyond_its_budget_in_flops_misses_it(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    def change(layers: list[dict[str, object]]) -> None:
        for layer in layers:
            layer["structure"] = {"type": "dense"}

    met = run(options(tmp_path / "met", "flops=60%", profile_folder=unbroken[0]))
    assert met.report.verified
    plan = edited(tmp_path / "met" / "plan.json", tmp_path / "mine.json", change)
    asked = options(tmp_path / "out", None, plan_file=plan, profile_folder=unbroken[0])
    failed = [check for check in run(asked).report.checks if check.passed is False]
    assert [check.name for check in failed] == ["budget"]
    assert "FLOPs per example of" in failed[0].detail


def test_a_run_does_not_overwrite_its_plan_that_somebody_edited(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    def change(layers: list[dict[str, object]]) -> None:
        layers[1]["structure"] = {"type": "dense"}

    output = copied(unbroken[0], tmp_path / "moved")
    own = edited(output / "plan.json", output / "plan.json", change)
    with pytest.raises(PlanError, match=r"edited since it was made; use it with --plan"):
        run(options(output))
    result = run(options(output, None, plan_file=own))
    assert isinstance(result.plan.layers[1].structure, lrcompress.Dense)
    assert not result.plan.within_budget or result.report.verified


def test_a_run_needs_a_budget_or_a_plan(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="a budget or a plan"):
        options(tmp_path, None)
    with pytest.raises(PlanError, match="a budget or a plan"):
        options(tmp_path, plan_file=tmp_path / "plan.json")


# ---- sweeps ---------------------------------------------------------------------------------


def test_a_sweep_adds_a_curve_and_changes_no_file(
    without_graph: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    result = run(options(output, sweep=(40, 80, 1), to_onnx=False))
    budgets = {point.budget: point for point in result.report.sweep}
    assert list(budgets) == ["params=80%", "params=40%"]
    assert budgets["params=40%"].measured > budgets["params=80%"].measured > 0
    assert [w for w in result.report.warnings if w.startswith("no sweep at params=1%")]
    own, plain = digests(output), digests(without_graph[0])
    assert own.pop("stages.json") != plain.pop("stages.json")
    assert own == plain
    again = run(options(output, sweep=(40, 80, 1), to_onnx=False))
    assert "sweep" in reused(again)
    assert again.report.sweep == result.report.sweep
    assert not run(options(output, to_onnx=False)).report.sweep


def test_a_sweep_can_follow_a_finished_run(
    unbroken: tuple[Path, RunResult], slim: Path, tmp_path: Path
) -> None:
    for name, finished in (("whole", unbroken[0]), ("slim", slim)):
        output = copied(finished, tmp_path / name)
        result = run(options(output, sweep=(80,), to_onnx=False))
        assert len(result.report.sweep) == 1
        assert ("compress" in reused(result)) is (name == "whole")


def test_a_sweep_without_data_says_so(unbroken: tuple[Path, RunResult], tmp_path: Path) -> None:
    source = SourceOptions(str(unbroken[0]))
    result = run(options(tmp_path, "90%", source=source, sweep=(80,), to_onnx=False))
    assert not result.report.sweep
    assert "no sweep: there is no data to measure it on" in result.report.warnings


# ---- dropped moments ------------------------------------------------------------------------


def shards(output: Path) -> list[Path]:
    return sorted((output / "profile").glob("moments-*"))


@pytest.fixture(scope="module")
def slim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("runs") / "slim"
    result = run(options(output, drop_moments=True))
    assert not shards(output)
    assert not [file for file in result.report.files if "moments" in file.name]
    return output


def test_dropped_moments_leave_a_profile_and_a_finished_run(slim: Path, tmp_path: Path) -> None:
    output = copied(slim, tmp_path / "moved")
    before = digests(output)
    found = lrcompress.load_profile(output / "profile")
    assert not found.moments
    assert lrcompress.plan(found, "40%").params < lrcompress.plan(found, "60%").params
    assert reused(run(options(output))) == STAGES[1:]  # with the option or without
    assert reused(run(options(output, drop_moments=True))) == STAGES[1:]
    assert digests(output) == before


def test_another_budget_measures_dropped_moments_again(
    slim: Path, unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output, other = copied(slim, tmp_path / "moved"), copied(unbroken[0], tmp_path / "other")
    run(options(output, "70%", to_onnx=False))
    run(options(other, "70%", to_onnx=False))
    assert shards(output)
    assert digests(output) == digests(other)


def test_a_profile_handed_in_without_moments_is_refused(slim: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"moments were dropped.*without --profile"):
        run(options(tmp_path / "out", profile_folder=slim))
    plain = replace(options(tmp_path / "out").plan, metric="plain")
    result = run(options(tmp_path / "plain", profile_folder=slim, plan=plain))
    assert result.report.verified  # the plain metric needs none


def test_moments_of_a_failed_run_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lrcompress.export.verify.result import BudgetFacts
    from lrcompress.pipeline.stages import export as exporting

    monkeypatch.setattr(exporting, "budget_facts", lambda _: BudgetFacts(params=1))
    result = run(options(tmp_path / "out", drop_moments=True))
    assert not result.report.verified
    assert shards(tmp_path / "out")


def test_a_profile_of_its_own_keeps_its_moments_when_the_copy_loses_them(
    slim: Path, unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    given = copied(unbroken[0] / "profile", tmp_path / "profile")
    output = tmp_path / "out"
    run(options(output, profile_folder=given, drop_moments=True))
    assert not shards(output)
    assert list(given.glob("moments-*"))
    run(options(output, "70%", profile_folder=given, to_onnx=False))
    assert shards(output)


# ---- profiles -------------------------------------------------------------------------------


def test_a_profile_of_its_own_gives_the_same_run_elsewhere_and_in_its_own_folder(
    unbroken: tuple[Path, RunResult], without_graph: tuple[Path, RunResult], tmp_path: Path
) -> None:
    made = run_profile(SOURCE, FolderOptions(tmp_path / "profile", report=False))
    assert made.report.after is None
    assert find_profile(tmp_path / "profile") == tmp_path / "profile"
    assert find_profile(unbroken[0]) == unbroken[0] / "profile"
    elsewhere = options(tmp_path / "out", profile_folder=tmp_path / "profile", to_onnx=False)
    run(elsewhere)
    name = "model.safetensors"
    assert digests(tmp_path / "out")[name] == digests(without_graph[0])[name]
    result = run(options(tmp_path / "profile"))
    assert result.report.verified
    mine, theirs = digests(tmp_path / "profile"), digests(unbroken[0])
    assert mine["model.onnx"] == theirs["model.onnx"]
    assert mine[name] == theirs[name]


def test_a_profile_of_another_model_is_refused(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    source = replace(SOURCE, model="networks:Mlp", data=None)
    run_profile(source, FolderOptions(tmp_path / "profile", report=False))
    with pytest.raises(ModelError, match="is the profile of another model"):
        run(options(tmp_path / "out", profile_folder=tmp_path / "profile"))
    with pytest.raises(DataError, match=r"holds no profile\.json"):
        find_profile(tmp_path / "nothing")


def test_inputs_that_nobody_knows_are_asked_for_before_any_work(tmp_path: Path) -> None:
    source = replace(SOURCE, data=None)
    with pytest.raises(DataError, match="its inputs are not known without data"):
        run(options(tmp_path / "out", source=source))
    assert not (tmp_path / "out").exists()


def test_a_preview_writes_nothing_and_sees_the_run_s_plan(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    seen = preview(options(tmp_path / "out"))
    assert list(tmp_path.iterdir()) == []
    assert seen.plan == unbroken[1].plan


def test_a_preview_reads_the_profile_that_is_there(
    unbroken: tuple[Path, RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("profiled again")

    monkeypatch.setattr(import_module("lrcompress.pipeline.run"), "profile", never)
    before = digests(unbroken[0])
    assert preview(options(unbroken[0], "80%")).plan.params > unbroken[1].plan.params
    assert digests(unbroken[0]) == before


# ---- real folders ---------------------------------------------------------------------------


@pytest.mark.slow
def test_the_run_of_a_hugging_face_model_is_self_contained(tmp_path: Path) -> None:
    import tiny_models

    tiny_models.save("bert", tmp_path / "model", layers=1)
    text = tmp_path / "text.txt"
    text.write_text("the cat sat on a mat\none dog saw the cat\nrun far away and saw a mat\n" * 4)
    source = SourceOptions(str(tmp_path / "model"), data=str(text))
    result = run(options(tmp_path / "out", "80%", source=source, pt2=True))
    assert result.report.verified
    assert result.report.objective == "cosine"
    shutil.rmtree(tmp_path / "model")
    moved = (tmp_path / "out").rename(tmp_path / "moved")
    module = lrcompress.load(moved)
    assert (moved / "tokenizer.json").is_file()
    batch = {
        "input_ids": torch.tensor([[2, 5, 6, 3], [2, 7, 3, 0], [2, 3, 0, 0]]),
        "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 1, 0], [1, 1, 0, 0]]),
        "token_type_ids": torch.zeros(3, 4, dtype=torch.int64),
    }
    program = torch.export.load(moved / "model.pt2").module()
    with torch.no_grad():
        ours = module(**batch).last_hidden_state
        theirs = program(**batch)["last_hidden_state"]
    # the same float32 products, in another order at most
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)


# ---- budgets in bytes -----------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_a_budget_in_bytes_is_that_of_the_file(
    precision: str, unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    asked = options(tmp_path / "out", "bytes=36kB", profile_folder=unbroken[0])
    export = replace(asked.export, precision=precision)
    plan = replace(asked.plan, bytes_per_param=4 if precision == "fp32" else 2)
    result = run(replace(asked, export=export, plan=plan))
    size = (tmp_path / "out" / "model.onnx").stat().st_size
    assert size <= 36_000
    assert size >= 0.9 * 36_000 or result.plan.params == result.plan.dense_params
    assert result.report.verified


def test_the_measured_size_of_a_plan_is_that_of_the_file_to_the_byte(
    unbroken: tuple[Path, RunResult], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Metadata included: a budget may be missed by the bytes that the measurement lacks."""
    monkeypatch.setattr(file_size, "STEP", 1)
    monkeypatch.setattr(file_size, "STEPS_OF_LIMIT", 2**40)
    seen: list[int] = []
    fitted = file_size.FileSize.fitted

    def watched(size: file_size.FileSize, made: Plan) -> Plan:
        found = fitted(size, made)
        seen.append(found.bytes - found.options.overhead_bytes + size.overhead(found))
        return found

    monkeypatch.setattr(file_size.FileSize, "fitted", watched)
    result = run(options(tmp_path / "out", "bytes=70%", profile_folder=unbroken[0]))
    (measured,) = seen
    assert (tmp_path / "out" / "model.onnx").stat().st_size == measured <= result.plan.limit


def test_sizes_before_and_after_are_those_of_files_as_the_budget_counts_them(
    unbroken: tuple[Path, RunResult], without_graph: tuple[Path, RunResult], tmp_path: Path
) -> None:
    result = run(options(tmp_path / "out", "bytes=70%", profile_folder=unbroken[0]))
    before, after = result.report.before, result.report.after
    assert after is not None
    assert after.bytes == (tmp_path / "out" / "model.onnx").stat().st_size
    assert after.bytes <= result.plan.limit <= 0.7 * before.bytes
    assert before.bytes == result.plan.dense_bytes
    # Under another budget the rest of the file counts on both sides
    others = unbroken[1].report
    assert others.after is not None
    weights = 4 * (unbroken[1].plan.dense_params - unbroken[1].plan.params)
    assert others.before.bytes - others.after.bytes == weights
    # Without a graph both are the weights alone
    alone = without_graph[1]
    assert alone.report.before.bytes == alone.profile.total_bytes


def test_the_promise_of_a_run_folder_is_its_budget(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    promised = promised_budget(unbroken[0] / "model.onnx")
    assert promised.params == unbroken[1].plan.limit
    assert promised_budget(tmp_path / "model.onnx").params is None


# ---- folders --------------------------------------------------------------------------------


def test_a_folder_with_other_things_is_refused(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(LrcompressError, match="not empty and not a run folder"):
        run(options(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_force_writes_beside_other_things(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    where = FolderOptions(tmp_path, report=False, force=True)
    run(options(tmp_path, folder=where))
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / "model.onnx").is_file()


def test_a_run_of_another_model_is_refused(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(unbroken[0], tmp_path / "moved")
    before = digests(output)
    other = replace(SOURCE, model="networks:Mlp", data="networks:mlp_batches")
    with pytest.raises(LrcompressError, match="holds a run of small_network:build with other"):
        run(options(output, source=other))
    assert digests(output) == before


def test_a_run_folder_cannot_be_compressed_into_itself(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(unbroken[0], tmp_path / "moved")
    with pytest.raises(LrcompressError, match="with other weights"):
        run(options(output, source=replace(SOURCE, model=str(output))))


def test_a_compressed_model_can_be_compressed_further(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    again = replace(SOURCE, model=str(unbroken[0]))
    result = run(options(tmp_path / "smaller", "95%", source=again))
    assert result.report.verified
    batch = {"x": torch.randn(2, 24, generator=torch.Generator().manual_seed(1))}
    assert lrcompress.load(tmp_path / "smaller")(**batch).shape == (2, 7)


def test_one_run_at_a_time(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(LrcompressError, match=rf"another run \(process {os.getpid()}\)"),
    ):
        run(options(tmp_path))
    assert list(tmp_path.iterdir()) == []


def test_the_lock_of_a_killed_run_does_not_hold(tmp_path: Path) -> None:
    (tmp_path / LOCK_NAME).write_text("4711")
    with locked(tmp_path):
        pass
    assert not (tmp_path / LOCK_NAME).exists()


def test_a_damaged_ledger_is_named(unbroken: tuple[Path, RunResult], tmp_path: Path) -> None:
    output = copied(unbroken[0], tmp_path / "moved")
    for text in ("{", "[]", '{"schema_version": 7}', '{"schema_version": 1, "stages": {"a": 1}}'):
        (output / folders.LEDGER_NAME).write_text(text)
        with pytest.raises(DataError, match=r"stages\.json: .*; choose another .* or --force"):
            run(options(output))


# ---- without the export ---------------------------------------------------------------------


def test_a_run_without_its_export_has_the_same_weights_and_says_that_nothing_is_verified(
    unbroken: tuple[Path, RunResult], without_graph: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output, (whole, complete) = copied(without_graph[0], tmp_path / "out"), unbroken
    report = without_graph[1].report
    assert [stage.name for stage in report.stages] == STAGES[:4]
    assert not report.verified
    assert NO_GRAPH in report.warnings
    assert report.after is not None
    assert report.after.bytes == (output / "model.safetensors").stat().st_size
    found = digests(output)
    assert {name: digest for name, digest in found.items() if name != "stages.json"} == {
        name: digest
        for name, digest in digests(whole).items()
        if name not in ("stages.json", "model.onnx")
    }
    later = run(options(output))
    assert reused(later) == STAGES[1:4]
    assert digests(output) == digests(whole)
    assert later.report.verified
    assert complete.report.after == later.report.after


def test_a_graph_of_other_weights_does_not_stay_beside_a_run_without_its_export(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(unbroken[0], tmp_path / "out")
    run(options(output, "70%", to_onnx=False))
    assert not (output / "model.onnx").exists()
    assert (output / "model.safetensors").exists()


def test_a_verified_graph_of_the_same_weights_stays_without_the_export(
    unbroken: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output = copied(unbroken[0], tmp_path / "out")
    report = run(options(output, to_onnx=False)).report
    assert digests(output) == digests(unbroken[0])
    assert report.verified
    assert (report.after, report.checks) == (unbroken[1].report.after, unbroken[1].report.checks)
    assert [stage.name for stage in report.stages if stage.reused] == STAGES[1:]
    (output / "model.onnx").unlink()
    assert not run(options(output, to_onnx=False)).report.verified


def test_a_graph_that_failed_does_not_stay_without_the_export(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lrcompress.export.verify.result import BudgetFacts
    from lrcompress.pipeline.stages import export as exporting

    output = tmp_path / "out"
    with monkeypatch.context() as patched:
        patched.setattr(exporting, "budget_facts", lambda _: BudgetFacts(params=1))
        assert not run(options(output)).report.verified
    assert (output / "model.onnx").exists()
    report = run(options(output, to_onnx=False)).report
    assert not (output / "model.onnx").exists()
    assert NO_GRAPH in report.warnings
    assert not report.verified


@pytest.mark.parametrize("needs", [{"pt2": True}, {"drop_moments": True}])
def test_what_needs_the_export_is_refused_without_it(needs: dict[str, bool]) -> None:
    with pytest.raises(ExportError, match=f"{next(iter(needs))} needs the export"):
        options(Path("out"), to_onnx=False, **needs)
