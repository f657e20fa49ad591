"""Runs under a budget of latency: what is timed, what is recorded, and what a rerun reuses."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner

from lrcompress.errors import BudgetError, LrcompressError, ModelError
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, plan_timer, preview, run
from lrcompress.planning.budget import Budget
from lrcompress.planning.network_time import NetworkTime
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.options import ProfileOptions
from lrcompress_cli.main import main

pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found


def options(output: Path, *budgets: str, rounds: int = 0) -> RunOptions:
    first, *others = map(Budget.parse, budgets or ("latency=60%",))
    return RunOptions(
        source=SourceOptions("structured_network:build", data="structured_network:batches"),
        folder=FolderOptions(output, report=False),
        budget=first,
        also=tuple(others),
        profile=ProfileOptions(trials=False),
        plan=PlanOptions(structures=("low_rank",)),
        rounds=rounds,
        to_onnx=False,
    )


@pytest.fixture
def timings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the timer: the layers take 90 % of the time, and each plan 58 % of it."""
    done: list[str] = []

    def time_network(path: Path, batch: object, layers: list[object], settings: object) -> object:
        assert path.is_file()
        done.append("dense")
        times = {layer.name: float(layer.flops_per_row) for layer in layers}  # type: ignore[attr-defined]
        return NetworkTime(times, sum(times.values()) / 9, "1 x 8 on cpu, 1 threads")

    def latency_over(dense: Path, other: Path, batch: object, settings: object) -> float:
        assert dense.is_file()
        assert other.is_file()
        done.append("planned")
        return 0.58

    monkeypatch.setattr(plan_timer, "time_network", time_network)
    monkeypatch.setattr(plan_timer, "latency_over", latency_over)
    return done


def test_a_run_times_its_network_and_its_plan_and_says_what_it_found(
    tmp_path: Path, timings: list[str]
) -> None:
    asked = options(tmp_path / "run")
    result = run(asked)
    assert timings == ["dense", "planned"]
    assert result.plan.latency_ratio == 0.58
    said = "latency: 58.0% of dense, measured here (1 x 8 on cpu, 1 threads), of 60.0% allowed"
    assert said in result.report.warnings
    assert run(asked).plan == result.plan
    assert timings == ["dense", "planned"]  # the plan stage is finished


def test_a_selected_plan_is_timed_too(tmp_path: Path, timings: list[str]) -> None:
    result = run(options(tmp_path / "run", rounds=1))
    assert result.plan.latency_ratio == 0.58
    assert timings.count("dense") == 1
    assert result.report.tried


def test_two_budgets_are_met_by_a_run_and_its_file(tmp_path: Path, timings: list[str]) -> None:
    asked = options(tmp_path / "run", "bytes=70%", "latency=60%")
    result = run(replace(asked, to_onnx=True))
    assert result.plan.within_budget
    assert result.report.budget == "bytes=70% and latency=60%"
    (check,) = (check for check in result.report.checks if check.name == "budget")
    assert check.passed
    assert "58.0% of the dense latency, measured" in check.detail
    assert "bytes of" in check.detail
    assert timings


def test_two_impossible_budgets_are_told_by_the_measured_times(
    tmp_path: Path, timings: list[str]
) -> None:
    """A tenth of the measured time never changes, though by FLOPs all of it could."""
    with pytest.raises(BudgetError) as caught:
        run(options(tmp_path / "run", "bytes=1%", "latency=1%"))
    said = str(caught.value)
    assert "budget bytes=1%: cannot be met" in said
    assert "budget latency=1%: cannot be met" in said
    assert "10 % of the time cannot change" in said
    assert timings == ["dense"]


def test_the_plan_command_takes_several_budgets(tmp_path: Path, timings: list[str]) -> None:
    folder = tmp_path / "run"
    run(options(folder, "params=70%"))
    given = ("--budget", "params=70%", "--budget", "flops=65%", "--structures", "low-rank")
    result = CliRunner().invoke(main, ["plan", str(folder), *given, "--json"])
    assert result.exit_code == 0, result.stderr
    record = json.loads(result.stdout)["plan"]
    assert record["budget"] == "params=70%"
    assert record["also"] == ["flops=65%"]
    assert record["within_budget"]
    planned, dense = record["planned"], record["dense"]
    assert planned["params"] <= 0.7 * dense["params"]
    assert planned["flops_per_example"] <= 0.65 * dense["flops_per_example"]
    again = CliRunner().invoke(main, ["plan", str(folder), *given[:2], *given[:2]])
    assert "two limit the same" in again.stderr
    assert timings == []


def test_other_budgets_time_nothing(tmp_path: Path, timings: list[str]) -> None:
    run(options(tmp_path / "run", "params=60%"))
    assert timings == []


def test_a_network_that_is_not_timed_counts_by_flops_and_the_plan_says_so(
    tmp_path: Path, timings: list[str]
) -> None:
    result = run(replace(options(tmp_path / "run"), time_network=False))
    assert timings == []
    assert any("was not timed here" in warning for warning in result.report.warnings)


def test_a_graph_that_cannot_be_timed_is_a_warning(
    tmp_path: Path, timings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise ModelError("the graph has no kernels here; export it in another precision")

    monkeypatch.setattr(plan_timer, "time_network", fail)
    result = run(options(tmp_path / "run"))
    assert any("was not timed here" in warning for warning in result.report.warnings)
    assert result.plan.options.network_time is None


def test_a_budget_that_the_machine_cannot_keep_ends_the_run(
    tmp_path: Path, timings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan_timer, "latency_over", lambda *_: 0.93)
    with pytest.raises(BudgetError, match=r"latency=93\.0%"):
        run(options(tmp_path / "run"))


def test_a_killed_plan_stage_takes_the_times_that_it_had(
    tmp_path: Path, timings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a selection, what was measured is kept until the stage is finished."""

    def killed(*_: object, **__: object) -> None:
        raise LrcompressError("killed")

    asked = options(tmp_path / "run", rounds=1)
    with monkeypatch.context() as patch:
        patch.setattr("lrcompress.pipeline.stages.plan.select", killed)
        with pytest.raises(LrcompressError, match="killed"):
            run(asked)
    before = [*timings]
    assert before == ["dense", "planned"]
    result = run(asked)
    assert timings.count("dense") == 1
    assert result.plan.latency_ratio == 0.58


def test_a_preview_times_its_plan(tmp_path: Path, timings: list[str]) -> None:
    assert preview(options(tmp_path / "run")).plan.latency_ratio == 0.58
    assert timings == ["dense", "planned"]
    assert not (tmp_path / "run").exists()
