"""Several processes give what one gives, and fail as one.

The processes are real ones that meet over gloo on the loopback interface.
"""

from __future__ import annotations

import hashlib
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from several_processes import NETWORKS, PROCESSES, Compressed
from torch import Tensor

from lrcompress import distributed
from lrcompress.errors import FitError
from lrcompress.metrics import LayerMoments
from lrcompress.pipeline.lock import LOCK_NAME
from lrcompress.profiling.profile import Profile
from lrcompress_cli.main import main

TESTS = Path(__file__).parents[1]
PATIENCE = 240  # seconds: far more than needed, but a busy machine is slow to import torch
FP32 = torch.finfo(torch.float32).eps
LAUNCHER = ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}")

pytestmark = pytest.mark.slow  # five processes that import torch


@dataclass(frozen=True)
class Results:
    """What each process came to, by scenario; `single` is a process of its own."""

    folder: Path

    def of(self, scenario: str, process: int | str) -> Any:
        return torch.load(self.folder / f"{scenario} {process}", weights_only=False)

    def everybodys(self, scenario: str) -> list[Any]:
        return [self.of(scenario, rank) for rank in range(PROCESSES)]


def environment(**changes: str) -> dict[str, str]:
    """One thread each, as torchrun has it: bits depend on the number of threads."""
    return {**os.environ, "OMP_NUM_THREADS": "1", **changes}


def launch(folder: Path, scenarios: Sequence[str], *, single: bool = False) -> None:
    """Run the scenarios in each of the processes, which find each other as torchrun's do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": str(PROCESSES), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    places = [{"RANK": str(rank), **common} for rank in range(PROCESSES)] + [{}] * single
    code = "import several_processes; several_processes.main()"
    command = [sys.executable, "-c", code, str(folder), *scenarios]
    children = [subprocess.Popen(command, cwd=TESTS, env=environment(**place)) for place in places]
    try:
        codes = [child.wait(PATIENCE) for child in children]
    finally:
        for child in children:
            child.kill()
    assert codes[0] == 0, codes


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """One launch for all: starting a process takes longer than what it does here."""
    folder = tmp_path_factory.mktemp("processes")
    scenarios = ["meeting", "failures", "profiles", "profiling calls", "compressing", "tuning"]
    launch(folder, scenarios, single=True)
    return Results(folder)


# ---- how they meet --------------------------------------------------------------------------


def test_each_process_has_its_place_and_its_share(results: Results) -> None:
    met = results.everybodys("meeting")
    assert [found["place"] for found in met] == [(0, 2, True), (1, 2, False)]
    assert [found["shard"] for found in met] == [[0, 2, 4], [1, 3]]
    assert [found["alone"] for found in met] == [(0, 1), (0, 1)]


def test_all_processes_learn_what_each_found_in_order(results: Results) -> None:
    for found in results.everybodys("meeting"):
        assert [theirs["rank"] for theirs in found["gathered"]] == [0, 1]
        assert [theirs["tensor"].tolist() for theirs in found["gathered"]] == [[0, 0], [1, 1]]
        assert found["turns"] == [(0, 0), (1, 1), (2, 0), (3, 1), (4, 0)]
        assert found["sum"].tolist() == [1.0, 3.0, 5.0]
        assert found["main"] == (0, 1)  # the first process, alone
        assert found["alike"] == [3, 2, 1]
        assert found["same"]
        assert not found["not same"]


def test_a_single_process_does_all_itself_and_never_starts_torchs_engine(
    results: Results,
) -> None:
    found = results.of("meeting", "single")
    assert found["place"] == (0, 1, True)
    assert found["shard"] == [0, 1, 2, 3, 4]
    assert found["turns"] == [(i, 0) for i in range(5)]
    assert found["alike"] == [1, 3, 2]  # as they came
    assert found["sum"].tolist() == [0.0, 1.0, 2.0]
    assert not found["initialised"]


def test_importing_it_loads_no_torch() -> None:
    code = (
        "import sys, lrcompress.distributed, lrcompress_cli.main; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("work", "FitError: layer: bad"),
        ("step", "FitError: layer: bad"),
        ("main", "FitError: disk: full"),
        ("weights", "ModelError: the processes hold different weights"),
        ("data", "DataError: the processes hold different calibration data"),
        ("a batch", "ModelError: the model's output on calibration batch 3 is NaN"),
    ],
)
def test_what_one_process_raises_all_raise(results: Results, where: str, message: str) -> None:
    for found in results.everybodys("failures"):
        assert found[where].startswith(message)


def test_an_error_that_cannot_travel_arrives_in_words(results: Results) -> None:
    first, second = results.everybodys("failures")
    assert first["awkward"] == "RuntimeError: Awkward: bad at here"
    assert second["awkward"] == "Awkward: bad at here"  # where it was raised it is itself


def test_an_error_from_elsewhere_says_where_it_was_raised() -> None:
    def fails() -> None:
        raise FitError("layer: bad")

    with pytest.raises(FitError) as caught:
        fails()
    carried = distributed.portable(caught.value)
    assert type(carried) is FitError
    (note,) = carried.__notes__
    assert note.startswith("In process 0 of 1:")
    assert "in fails" in note


@pytest.mark.parametrize("how", ["gone", pytest.param("hangs", marks=pytest.mark.slow)])
def test_nobody_waits_for_a_process_in_vain(how: str, tmp_path: Path) -> None:
    """A killed one is noticed at once; one that hangs when its time, here 5 s, is over."""
    launch(tmp_path, [how])
    assert Results(tmp_path).of(how, 0) == "ProcessLost"


# ---- profile --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*NETWORKS, "no data"])
def test_a_profile_of_several_processes_is_that_of_one(results: Results, name: str) -> None:
    """To rounding: the batches' float32 products are the same ones, and only the order in which
    they are summed in float64 differs. So a moment in float32 is off by a unit in the last place
    at most, and what cancels by float64's rounding of what was summed. A square root of a matrix
    is off by no more than the root of that, of its largest value."""
    one = results.of("profiles", "single")[name]
    for found in results.everybodys("profiles"):
        other: Profile = found[name]
        assert [x.name for x in other.layers] == [x.name for x in one.layers]
        assert other.left_alone == one.left_alone
        assert (other.examples, other.tokens) == (one.examples, one.tokens)
        assert other.total_flops_per_example == one.total_flops_per_example
        assert other.warnings == one.warnings
        assert other.moments.keys() == one.moments.keys()
        for own, theirs in zip(one.layers, other.layers, strict=True):
            assert theirs.input_group == own.input_group
            assert theirs.rows_per_example == own.rows_per_example
            assert theirs.shrinkage == own.shrinkage
            assert theirs.spectra.keys() == own.spectra.keys()
            for metric, spectrum in own.spectra.items():
                slack = FP32**0.5 * float(spectrum.max())
                torch.testing.assert_close(theirs.spectra[metric], spectrum, rtol=0, atol=slack)
            assert [t.rank for t in theirs.trials] == [t.rank for t in own.trials]
            for trial, expected in zip(theirs.trials, own.trials, strict=True):
                assert trial.measured == pytest.approx(expected.measured, rel=FP32**0.5)
            curves = [[p.structure for p in curve] for curve in own.curves]
            assert [[p.structure for p in curve] for curve in theirs.curves] == curves
        for layer, moments in one.moments.items():
            _assert_same_moments(other.moments[layer], moments)


def test_every_process_holds_the_very_same_profile(results: Results) -> None:
    first, second = results.everybodys("profiles")
    for name, profile in first.items():
        for one, other in zip(profile.layers, second[name].layers, strict=True):
            assert other.trials == one.trials
            assert other.curves == one.curves
            for metric, spectrum in one.spectra.items():
                assert other.spectra[metric].equal(spectrum)
    tried = [layer for profile in first.values() for layer in profile.layers]
    assert any(layer.trials for layer in tried)
    assert any(layer.curves for layer in tried)


def test_each_process_runs_its_share_of_the_batches(results: Results) -> None:
    """8 batches, beside the look at the output and the count of operations."""
    single = results.of("profiling calls", "single")
    assert results.everybodys("profiling calls") == [single - 4, single - 4]


def _assert_same_moments(one: LayerMoments, other: LayerMoments) -> None:
    assert (one.rows, one.examples) == (other.rows, other.examples)
    for part in ("input", "input_mean", "input_abs_mean"):
        _assert_rounded(getattr(one, part), getattr(other, part))
    assert (one.sensitivity is None) == (other.sensitivity is None)
    if one.sensitivity is not None and other.sensitivity is not None:
        for part in ("input", "output", "cross", "bias"):
            own, theirs = getattr(one.sensitivity, part), getattr(other.sensitivity, part)
            assert (own is None) == (theirs is None)
            if own is not None:
                _assert_rounded(own, theirs)


def _assert_rounded(one: Tensor, other: Tensor) -> None:
    """float64 sums of some tens of terms, of which float32 is kept."""
    slack = 64 * torch.finfo(torch.float64).eps * float(other.abs().max())
    torch.testing.assert_close(one, other, rtol=FP32, atol=slack)


# ---- compress -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["fitted", "refitted"])
def test_compressing_by_several_processes_gives_the_bits_of_one(
    results: Results, name: str
) -> None:
    single: Compressed = results.of("compressing", "single")[name]
    assert (single.report.refit is not None) == (name == "refitted")
    for found in results.everybodys("compressing"):
        other: Compressed = found[name]
        assert other.report == single.report
        assert other.resumed == single.report
        assert other.state.keys() == single.state.keys()
        for key, value in single.state.items():
            assert other.state[key].equal(value), key


def test_the_layers_are_shared_out_and_the_first_process_keeps_them(results: Results) -> None:
    single: Compressed = results.of("compressing", "single")["fitted"]
    first, second = (found["fitted"] for found in results.everybodys("compressing"))
    layers = sorted(layer.name for layer in single.report.layers)
    assert single.fits == len(layers) == first.fits + second.fits
    assert abs(first.fits - second.fits) <= 1
    assert single.stored == first.stored == layers
    assert second.stored == []


def test_a_layer_that_cannot_be_fitted_is_named_by_all(results: Results) -> None:
    errors = {found["fitted"].error for found in results.everybodys("compressing")}
    assert len(errors) == 1
    assert "the profile holds no moments" in errors.pop()


# ---- torchrun -------------------------------------------------------------------------------


def torchrun(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *LAUNCHER, "-m", "lrcompress_cli", *map(str, arguments)]
    return subprocess.run(
        command,
        cwd=TESTS,
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE,
    )


def digests(root: Path) -> dict[str, str]:
    return {
        path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in root.rglob("*")
        if path.is_file() and path.name not in ("report.json", "report.html")
    }


NETWORK = ("small_network:build", "--data", "small_network:batches", "--no-report")


@pytest.mark.parametrize("name", ["rate given", "rate found", "regularised"])
def test_a_tuning_by_several_processes_takes_the_steps_of_one(results: Results, name: str) -> None:
    one, alone = results.of("tuning", "single")[name]
    (first, weights), (second, other) = (found[name] for found in results.everybodys("tuning"))
    assert first == second
    assert all(torch.equal(value, other[key]) for key, value in weights.items())
    assert first.end < first.start
    assert first.learning_rate == one.learning_rate
    assert first.end == pytest.approx(one.end, rel=1e-3)
    for (
        key,
        value,
    ) in weights.items():  # Adam magnifies rounding
        torch.testing.assert_close(value, alone[key], rtol=0, atol=1e-3 * float(value.abs().max()))


@pytest.mark.slow
def test_a_run_under_torchrun_is_verified_and_written_once(tmp_path: Path) -> None:
    output, alone = tmp_path / "several", tmp_path / "one"
    done = torchrun("compress", *NETWORK, "--budget", "60%", "-o", output, "--json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('"folder"') == 1
    assert '"verified": true' in done.stdout
    assert done.stderr.count("the factory's own") == 1
    assert not (output / LOCK_NAME).exists()
    assert not (output / "work").exists()
    profile = output / "profile"
    arguments = ["compress", *NETWORK, "--budget", "60%", "--profile", str(profile)]
    command = [sys.executable, "-m", "lrcompress_cli", *arguments, "-o", str(alone), "--quiet"]
    subprocess.run(command, cwd=TESTS, env=environment(), check=True, timeout=PATIENCE)
    written = digests(output)
    del written["stages.json"]  # the one measured the profile, the other took it over
    assert written.items() <= digests(alone).items()
    again = torchrun("compress", *NETWORK, "--budget", "60%", "-o", output, "--json")
    assert again.returncode == 0, again.stderr
    assert again.stdout.count('"reused": true') == 5  # all stages but the loading


@pytest.mark.slow
def test_an_error_in_the_second_process_is_told_once_with_its_exit_code(tmp_path: Path) -> None:
    output = tmp_path / "out"
    data = ("--data", "small_network:batches", "--no-report", "-o", output)
    done = torchrun("profile", "several_processes:failing", *data)
    assert done.returncode != 0
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "no memory for this" in lines[0]
    assert "exitcode  : 7" in done.stderr  # torchrun tells it; its own status is always 1
    assert not (output / LOCK_NAME).exists()
    assert not (output / "profile.json").exists()


def test_other_commands_are_the_first_processs_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    done = CliRunner().invoke(main, ["plan", "nothing", "--budget", "50%"])
    assert (done.exit_code, done.output) == (0, "")
