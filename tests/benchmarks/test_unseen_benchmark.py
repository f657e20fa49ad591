"""What benchmarks/unseen.py concludes from rows, what a row holds, and how rows are kept."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from benchmarks import unseen
from benchmarks.machine import this_command
from benchmarks.unseen_comparison.claims import Verdict, judge
from benchmarks.unseen_comparison.outcome import ROOT, Outcome, run_command, without_folders
from benchmarks.unseen_comparison.results import Results
from benchmarks.unseen_comparison.row import METHODS, SINGLE, Case, LeftAlone, Row, row_of
from benchmarks.unseen_comparison.runs import Runs, profile_metric
from benchmarks.unseen_networks import Network, Score
from benchmarks.unseen_networks.network import network
from benchmarks.unseen_networks.score import logits_of
from lrcompress.errors import DataError
from lrcompress.metrics import METRICS

DENSE = Score(0.9, 0.3)
WORKED: dict[str, Any] = {
    "metric": "blended",
    "dense": {"params": 1000},
    "compressed": {"params": 600},
    "divergences": [
        {"where": "calibration", "predicted": 0.02, "measured": 0.03},
        {"where": "examples set aside", "predicted": 0.02, "measured": 0.025},
    ],
    "trusted": True,
    "doubts": [],
    "warnings": ["first", "second"],
}
REPORT = {
    "left_alone": [
        {"name": "a", "kind": "LayerNorm", "params": 8, "reason": "no matrix"},
        {"name": "b", "kind": "LSTM", "params": 500, "reason": "no matrix"},
        {"name": "c", "kind": "LayerNorm", "params": 8, "reason": "no matrix"},
    ]
}


def made(
    method: str, task: float | None, *, budget: int = 60, name: str = "crnn", **changes: Any
) -> Row:
    """A row of a command that worked, but for the changes."""
    outcome = Outcome("lrcompress compress ...", 0, 2.0, {**WORKED, "metric": "blended"}, REPORT)
    score = None if task is None else Score(task, 0.4)
    row = row_of(Case(name, budget, method), outcome, dense=DENSE, made=score)
    return replace(row, **changes)


def place(default: float | None, *singles: float | None, **changes: Any) -> list[Row]:
    """Rows of one network and budget: the default's, with the changes, and the single metrics'."""
    others = [made(name, task) for name, task in zip(SINGLE, singles, strict=False)]
    return [made("default", default, **changes), *others]


def verdict(letter: str, rows: Iterable[Row]) -> Verdict:
    return next(found for found in judge(list(rows)) if found.letter == letter)


# ---- claims ---------------------------------------------------------------------------------


def test_the_default_may_be_two_percent_of_dense_below_the_best_single_metric() -> None:
    assert verdict("a", place(0.783, 0.5, 0.8, 0.6, 0.7)).holds is True  # 0.8 - 0.018
    below = verdict("a", place(0.781, 0.5, 0.8, 0.6, 0.7))
    assert below.fails
    assert "crnn 60 %" in below.against[0]
    assert "input-weighted 0.8000" in below.against[0]


def test_one_bad_budget_fails_the_claim_whatever_the_others_say() -> None:
    good = [replace(row, budget=80) for row in place(0.9, 0.8, 0.8)]
    found = verdict("a", [*good, *place(0.5, 0.8)])
    assert found.fails
    assert found.judged == 2
    assert len(found.against) == 1


@pytest.mark.parametrize(("above", "holds"), [(0, False), (1, False), (2, True), (4, True)])
def test_half_of_the_rows_above_is_enough_and_never_required(*, above: int, holds: bool) -> None:
    rows = []
    for number in range(4):
        task = 0.7 if number < above else 0.6  # the others tie
        rows += [replace(row, budget=50 + number) for row in place(task, 0.6, 0.5)]
    found = verdict("b", rows)
    assert found.holds is holds
    assert not found.fails


def test_below_plain_fails_however_little_and_equal_does_not() -> None:
    assert verdict("c", place(0.6, 0.6, 0.9)).holds is True
    assert verdict("c", place(0.5999, 0.6)).fails
    without = [row for row in place(0.1, 0.6, 0.9) if row.method != "plain"]
    assert verdict("c", without).holds is None


@pytest.mark.parametrize(
    ("predicted", "measured", "doubts", "holds"),
    [
        (0.02, 0.011, (), True),
        (0.02, 0.039, (), True),
        (0.02, 0.041, (), False),
        (0.02, 0.009, (), False),
        (0.0, 0.02, (), False),
        (0.02, 0.2, ("not to be trusted",), True),
        (5e-7, 9e-5, (), True),  # negligible both
        (5e-7, 2e-4, (), False),
        (None, 0.2, (), None),  # in another unit than the divergence's
        (0.02, None, (), None),
    ],
)
def test_predictions_hold_within_a_factor_of_two_or_are_doubted(
    *, predicted: float | None, measured: float | None, doubts: tuple[str, ...], holds: bool | None
) -> None:
    row = made("default", 0.8, predicted=predicted, on_set_aside=measured, doubts=doubts)
    assert verdict("d", [row]).holds is holds


@pytest.mark.parametrize(
    ("task", "changes", "holds"),
    [
        (0.82, {}, True),
        (0.80, {}, False),  # 0.9 of 0.9 is 0.81
        (0.80, {"trusted": False}, None),
        (0.80, {"trusted": None}, None),
        (0.80, {"exit_code": 3}, None),
        (None, {"error": "RuntimeError: shapes"}, False),
    ],
)
def test_a_large_loss_is_never_silent(
    *, task: float | None, changes: dict[str, Any], holds: bool | None
) -> None:
    assert verdict("e", [made("plain", task, **changes)]).holds is holds


def test_a_refused_budget_is_no_failure_unless_a_single_metric_meets_it() -> None:
    refused = place(None, None, None, exit_code=5, trusted=None)
    assert verdict("a", refused).holds is None
    assert verdict("b", refused).holds is None
    met = place(None, 0.5, exit_code=5, trusted=None)
    assert verdict("a", met).fails
    assert verdict("c", met).fails


def test_a_crash_of_the_default_fails_even_where_the_others_crash_too() -> None:
    crashed = place(None, None, exit_code=1, trusted=None, error="a bug")
    found = verdict("a", crashed)
    assert found.fails
    assert "a bug" in found.against[0]


def test_nothing_is_claimed_of_nothing() -> None:
    assert [found.holds for found in judge([])] == [None] * 5
    assert [found.letter for found in judge([])] == list("abcde")


def test_the_exit_code_is_one_where_a_required_claim_fails(
    capsys: pytest.CaptureFixture[str],
) -> None:
    good = {"predicted": 0.02, "on_set_aside": 0.02}
    assert unseen.conclude(place(0.85, 0.85, **good)) == 0  # (b) alone does not hold
    assert "does not hold" in capsys.readouterr().out
    for bad in (
        place(0.5, 0.4, 0.9, doubts=("so",), trusted=False),  # (a)
        place(0.899, 0.9, **good),  # (c)
        place(0.9, 0.4, predicted=0.01, on_set_aside=0.05),  # (d)
        place(0.5, 0.4, **good),  # (e)
    ):
        assert unseen.conclude(bad) == 1
        assert "FAILS" in capsys.readouterr().out


# ---- rows -----------------------------------------------------------------------------------


def test_a_row_holds_what_the_command_said() -> None:
    outcome = Outcome("lrcompress compress X", 0, 12.34, WORKED, REPORT)
    row = row_of(Case("crnn", 60, "default"), outcome, dense=DENSE, made=Score(0.8, 0.4))
    assert (row.task, row.dense_task, row.nats, row.dense_nats) == (0.8, 0.9, 0.4, 0.3)
    assert (row.predicted, row.on_calibration, row.on_set_aside) == (0.02, 0.03, 0.025)
    assert (row.trusted, row.doubts, row.first_warning) == (True, (), "first")
    assert (row.exit_code, row.error, row.seconds) == (0, "", 12.3)
    assert row.kept == 0.6
    assert row.left_alone == (
        LeftAlone("LSTM", "no matrix", 1, 500),
        LeftAlone("LayerNorm", "no matrix", 2, 16),
    )


@pytest.mark.parametrize("method", METHODS)
def test_predictions_are_kept_where_their_unit_is_the_divergences(method: str) -> None:
    """A default run predicts in that unit whatever metric its fits end up in."""
    fitted_in = "plain" if method == "default" else method
    outcome = Outcome("", 0, 1.0, {**WORKED, "metric": fitted_in})
    row = row_of(Case("crnn", 60, method), outcome, dense=DENSE, made=DENSE)
    assert (row.predicted is not None) == (method in ("default", "two-sided"))


def test_a_refusal_and_a_killed_command_leave_rows_too() -> None:
    said = {"error": {"type": "BudgetError", "message": "cannot be met", "exit_code": 5}}
    row = row_of(Case("crnn", 50, "plain"), Outcome("", 5, 3.0, said), dense=DENSE, made=None)
    assert (row.task, row.exit_code, row.error) == (None, 5, "cannot be met")
    assert (row.trusted, row.params, row.kept, row.left_alone) == (None, None, None, ())
    killed = Outcome("", -9, 3.0, last_words="warning: so far")
    row = row_of(Case("crnn", 50, "plain"), killed, dense=DENSE, made=None)
    assert (row.exit_code, row.error) == (-9, "warning: so far")


def test_what_is_not_finite_is_recorded_as_absent() -> None:
    outcome = Outcome("", 0, 1.0, WORKED)
    score = Score(float("nan"), float("inf"))
    row = row_of(Case("crnn", 60, "default"), outcome, dense=DENSE, made=score)
    assert (row.task, row.nats) == (None, None)


def test_texts_name_no_folder_of_the_machine() -> None:
    folder = Path("/somewhere/unseen-x1/out")
    text = f"{folder}/model.onnx of {ROOT}/.cache/a in {Path.home()}/b by {sys.prefix}/lib/c"
    assert without_folders(text, folder) == "out/model.onnx of .cache/a in ~/b by lib/c"


def test_commands_name_no_folder_of_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    given = ["unseen.py", "--out", "/somewhere/else/u.json", "--out=/a/b.json", "--budget", "60%"]
    monkeypatch.setattr(sys, "argv", [*given, "benchmarks/results/u.json"])
    told = this_command()
    assert told.endswith("--out u.json --out=b.json --budget 60% benchmarks/results/u.json")


# ---- what is run ----------------------------------------------------------------------------


def test_large_networks_are_run_at_two_budgets_by_default() -> None:
    plain = unseen.parse_options([])
    assert {case.budget for case in unseen.cases_of("crnn", plain)} == {80, 60, 50}
    for name in ("whisper", "smollm2", "antiberty"):
        cases = unseen.cases_of(name, plain)
        assert {case.budget for case in cases} == {80, 60}
        assert {case.method for case in cases} == set(METHODS)


def test_quick_is_one_budget_and_what_is_asked_for_goes_first() -> None:
    quick = unseen.cases_of("smollm2", unseen.parse_options(["--quick"]))
    assert {case.budget for case in quick} == {60}
    assert [case.method for case in quick] == ["default", "input-weighted", "two-sided"]
    asked = unseen.parse_options(["--quick", "--budget", "70%", "--budget", "40"])
    assert {case.budget for case in unseen.cases_of("crnn", asked)} == {70, 40}
    with pytest.raises(SystemExit):
        unseen.parse_options(["--budget", "0"])


def test_single_metrics_share_a_profile_with_those_that_need_the_same_passes() -> None:
    for method in SINGLE:
        shared = METRICS[profile_metric(method)]
        assert shared.needs_outputs == METRICS[method].needs_outputs


def test_default_runs_share_nothing_and_the_others_a_profile(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    given: list[list[str]] = []

    def run(arguments: list[str], folder: Path) -> Outcome:
        given.append([*arguments, "-o", str(folder)])
        return Outcome("", 0, 5.0, WORKED)

    monkeypatch.setattr("benchmarks.unseen_comparison.runs.run_command", run)
    subject: Any = SimpleNamespace(
        sources=["MODEL", "--data", "DATA"],
        arguments=["MODEL", "--data", "DATA", "--scope", "total"],
        module=None,
        score=lambda module: DENSE,
    )
    runs = Runs(lambda: subject, tmp_path)
    rows = [runs.row(Case("crnn", 60, method)) for method in METHODS]
    compressing = [arguments for arguments in given if arguments[0] == "compress"]
    profiling = [arguments for arguments in given if arguments[0] == "profile"]
    assert len(compressing) == len(METHODS)
    assert [arguments[5] for arguments in profiling] == ["input-weighted", "two-sided"]
    assert "--metric" not in compressing[0]
    assert "--profile" not in compressing[0]
    folders = {arguments[-1] for arguments in profiling}
    for method, arguments in zip(SINGLE, compressing[1:], strict=True):
        assert arguments[arguments.index("--metric") + 1] == method
        assert arguments[arguments.index("--profile") + 1] in folders
    assert [row.profile_seconds for row in rows] == [0.0, 5.0, 5.0, 5.0, 5.0]
    assert all(row.error == "no network was written" for row in rows)


# ---- the file -------------------------------------------------------------------------------


class Counted:
    """In place of Runs: rows without a command, and the cases that were asked for."""

    network = SimpleNamespace(
        name="crnn", metric_name="strings", calibration="some", evaluation="others", scope="total"
    )

    def __init__(self, task: float = 0.8, *, breaks_at: int = 100) -> None:
        self.task, self.breaks_at = task, breaks_at
        self.asked: list[Case] = []

    def row(self, case: Case) -> Row:
        if len(self.asked) == self.breaks_at:
            raise KeyboardInterrupt
        self.asked.append(case)
        return made(case.method, self.task, budget=case.budget)


def compared(path: Path, runs: Any, *, again: bool = False) -> Results:
    cases = unseen.cases_of("crnn", unseen.parse_options(["--budget", "60"]))
    results = Results.read(path, {"processor": "any"})
    unseen.compare(cases, results, runs, again=again)
    return results


def test_rows_are_written_at_once_and_made_once(tmp_path: Path) -> None:
    path = tmp_path / "unseen.json"
    with pytest.raises(KeyboardInterrupt):
        compared(path, Counted(breaks_at=2))
    assert len(json.loads(path.read_text())["rows"]) == 2
    rest = Counted()
    compared(path, rest)
    assert [case.method for case in rest.asked] == list(METHODS[2:])
    held = Results.read(path, {})
    assert {row.method: row for row in held.rows.values()} == {
        method: made(method, 0.8) for method in METHODS
    }
    again = Counted(task=0.7)
    compared(path, again, again=True)
    assert len(again.asked) == len(METHODS)
    assert {row.task for row in Results.read(path, {}).rows.values()} == {0.7}


def test_the_file_holds_machine_command_claims_and_what_is_measured(tmp_path: Path) -> None:
    path = tmp_path / "unseen.json"
    compared(path, Counted())
    document = json.loads(path.read_text())
    assert document["machine"]["processor"] == "any"
    assert document["command"].startswith("python ")
    assert [found["letter"] for found in document["verdicts"]] == list("abcde")
    assert document["networks"]["crnn"]["metric"] == "strings"


def test_rows_of_several_networks_keep_the_order_of_the_tables(tmp_path: Path) -> None:
    results = Results(tmp_path / "unseen.json", {})
    rows = [
        made("two-sided", 0.8, budget=50),
        made("default", 0.8, name="albert"),
        made("plain", 0.8, budget=80),
        made("default", 0.8, budget=80),
    ]
    for row in rows:
        results.add(row)
    held = Results.read(results.path, {})
    assert held.of(held.rows) == [rows[1], rows[3], rows[2], rows[0]]


def test_a_file_of_something_else_is_not_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "unseen.json"
    path.write_text('{"rows": [{"network": 3}]}')
    with pytest.raises(DataError, match="network"):
        Results.read(path, {})


# ---- the command itself ---------------------------------------------------------------------


@pytest.mark.slow
def test_the_command_runs_end_to_end_on_a_small_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A shared profile gives what the command gives alone."""
    tests = Path(__file__).parents[1]
    monkeypatch.setenv(
        "PYTHONPATH", os.pathsep.join([str(tests), os.environ.get("PYTHONPATH", "")])
    )
    monkeypatch.syspath_prepend(str(tests))
    from small_network import batches, build

    torch.manual_seed(0)
    dense = build()
    save_file(dense.state_dict(), tmp_path / "weights.safetensors")
    inputs = batches()[0]
    chosen = logits_of(dense, inputs).argmax(-1)

    def load() -> Network:
        return network(
            "small",
            model="small_network:build",
            data="small_network:batches",
            weights=tmp_path / "weights.safetensors",
            score=lambda module: Score(
                float((logits_of(module, inputs).argmax(-1) == chosen).float().mean())
            ),
            metric_name="choices as the dense network's",
            scope="total",
            calibration="64 drawn rows",
            evaluation="16 of them",
        )

    runs = Runs(load, tmp_path)
    rows = {name: runs.row(Case("small", 80, name)) for name in ("default", "plain", "two-sided")}
    for method, row in rows.items():
        assert row.exit_code == 0, row.error
        assert row.dense_task == 1
        assert row.task is not None, row.error
        assert row.on_set_aside is not None
        assert row.kept is not None
        assert row.kept <= 0.8
        assert "--weights weights.safetensors" in row.command
        assert row.fitted_in == method or method == "default"
    alone = run_command([*arguments_of(runs), "--metric", "plain"], tmp_path / "alone")
    found = {x["where"]: x["measured"] for x in alone.record["divergences"]}
    assert found["examples set aside"] == rows["plain"].on_set_aside
    assert found["calibration"] == rows["plain"].on_calibration


def arguments_of(runs: Runs) -> list[str]:
    return ["compress", *runs.network.arguments, "--budget", "80%"]
