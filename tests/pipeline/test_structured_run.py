"""Whole runs with structures other than low rank: planned, edited, verified, reloaded."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from latency_tables import measurement, table
from structured_network import batches, build

import lrcompress
from lrcompress.compression.compress import CompressOptions
from lrcompress.pipeline import FolderOptions, RunOptions, RunResult, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.planning.latency import table_to_json
from lrcompress.planning.options import PlanOptions
from lrcompress.profiling.options import ProfileOptions
from lrcompress.structures import (
    Blast,
    BlockDiagonal,
    Interpolative,
    Kronecker,
    LowRank,
    Monarch,
    Structure,
)
from lrcompress.structures.serial import structure_to_json

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
EXPLORED = ("low_rank", "interpolative", "blast", "monarch", "block_diagonal")


def options(output: Path, budget: str = "50%", rounds: int = 0) -> RunOptions:
    """By default the profile alone decides, so that what it decides is known."""
    return RunOptions(
        source=SourceOptions("structured_network:build", data="structured_network:batches"),
        folder=FolderOptions(output, report=False),
        budget=Budget.parse(budget),
        profile=ProfileOptions(structures=EXPLORED),
        compress=CompressOptions(refit=False),
        rounds=rounds,
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunResult]:
    output = tmp_path_factory.mktemp("structured") / "run"
    return output, run(options(output))


def edited(output: Path, path: Path, changes: dict[str, Structure]) -> Path:
    plan = json.loads((output / "plan.json").read_text())
    for row in plan["layers"]:
        if row["name"] in changes:
            row["structure"] = structure_to_json(changes[row["name"]])
    path.write_text(json.dumps(plan))
    return path


def followed(output: Path, plan: Path, into: Path) -> RunResult:
    asked = replace(options(into), budget=None, plan_file=plan, profile_folder=output / "profile")
    return run(asked)


def test_a_run_with_structures_is_verified_and_meets_its_budget(
    finished: tuple[Path, RunResult],
) -> None:
    output, result = finished
    assert result.report.verified
    taken = {layer.structure.type_name for layer in result.plan.layers} - {"dense", "low_rank"}
    assert taken
    assert result.plan.params <= 0.5 * result.plan.dense_params
    module = lrcompress.load(output)
    assert sum(p.numel() for p in module.parameters()) == result.plan.params
    (budget,) = [check for check in result.report.checks if check.kind == "budget"]
    assert f"{result.plan.params:,} params" in budget.detail


def test_plans_with_structures_are_carried_out_too(tmp_path: Path) -> None:
    result = run(options(tmp_path / "run", rounds=2))
    assert result.report.verified
    assert result.plan.within_budget
    (kept,) = [row for row in result.report.tried if row.kept]
    assert kept.measured == min(row.measured for row in result.report.tried)
    # structures are fitted quickly for the trial, and in full for the result
    assert kept.measured == pytest.approx(result.plan.predicted_loss, rel=1e-6)
    taken = {layer.structure.type_name for layer in result.plan.layers} - {"dense", "low_rank"}
    assert taken


@pytest.mark.parametrize(
    "structure",
    [
        Blast(9, 3, 5),
        *(
            pytest.param(size, marks=pytest.mark.slow)
            for size in (Blast(8, 2), BlockDiagonal(5, 4), Kronecker(3))
        ),
        Monarch(2, 8),
        Interpolative(16),
    ],
    ids=str,
)
def test_an_edited_structure_of_any_size_is_honoured(
    structure: Structure, finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    """One that the profile did not try is predicted as low rank, and says so."""
    output, _ = finished
    plan = edited(output, tmp_path / "edited.json", {"up": structure})
    result = followed(output, plan, tmp_path / "followed")
    assert result.plan["up"].structure == structure
    said = [w for w in result.report.warnings if "predicted as low rank" in w]
    tried = isinstance(structure, Interpolative)
    assert bool(said) is not tried
    assert all("up" in warning for warning in said)
    if result.plan.within_budget:
        assert result.report.verified
    module = lrcompress.load(tmp_path / "followed")
    dense, x = build().eval(), batches()[0]["x"]
    with torch.no_grad():
        error = (module(x) - dense(x)).norm() / dense(x).norm()
    assert float(error) < 1


def test_a_structured_file_above_its_budget_is_told(
    finished: tuple[Path, RunResult], tmp_path: Path
) -> None:
    output, result = finished
    more = {"up": Blast(34, 4), "down": Blast(34, 4)}  # 5,984 of 6,144 parameters
    assert all(layer.name not in more or layer.params < 5_900 for layer in result.plan.layers)
    plan = edited(output, tmp_path / "edited.json", more)
    over = followed(output, plan, tmp_path / "followed")
    assert not over.plan.within_budget
    (budget,) = [check for check in over.report.checks if check.kind == "budget"]
    assert budget.passed is False
    assert f"{over.plan.params:,} params" in budget.detail
    assert budget.detail.endswith("; lower ranks or bits in its plan.json, or raise the budget")


def test_layers_that_measure_slower_are_named_by_the_run(tmp_path: Path) -> None:
    slow = tmp_path / "table.json"
    rows = [measurement("columns", 9.0, blocks=b, rows=r) for b in (4, 8) for r in (1, 128)]
    slow.write_text(table_to_json(table(*rows), {}))
    asked = replace(
        options(tmp_path / "run"),
        profile=ProfileOptions(structures=("blast",), trials=False),
        plan=PlanOptions(structures=("blast",), latency_table=str(slow)),
        to_onnx=False,
    )
    result = run(asked)
    named = [x.name for x in result.plan.layers if isinstance(x.structure, Blast)]
    assert named
    assert any("slower than dense" in w and named[0] in w for w in result.report.warnings)


def test_a_table_that_was_measured_again_is_planned_with(tmp_path: Path) -> None:
    path = tmp_path / "table.json"
    rows = [measurement("columns", 0.5, blocks=b, rows=r) for b in (4, 8) for r in (1, 128)]
    path.write_text(table_to_json(table(*rows), {}))
    asked = replace(
        options(tmp_path / "run", "flops=60%"),
        profile=ProfileOptions(structures=("low_rank", "blast"), trials=False),
        plan=PlanOptions(structures=("low_rank", "blast"), latency_table=str(path)),
        to_onnx=False,
    )
    assert any(isinstance(x.structure, Blast) for x in run(asked).plan.layers)
    path.write_text(table_to_json(table(*(replace(row, ratio=9.0) for row in rows)), {}))
    again = run(asked)
    assert not any(isinstance(x.structure, Blast) for x in again.plan.layers)
    assert any(isinstance(x.structure, LowRank) for x in again.plan.layers)
