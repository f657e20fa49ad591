"""A full disk for temporary files is told as that, and what was measured is shown although it
cannot be recorded."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path

import pytest
from click.testing import CliRunner

from lrcompress import atomic
from lrcompress.errors import LrcompressError, ModelError
from lrcompress.export import bench
from lrcompress.export.memory import PeakMemory, peak_memory
from lrcompress.pipeline import FolderOptions, RunOptions, RunResult, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.scratch import scratch_folder
from lrcompress_cli import main

TESTS = Path(__file__).parents[1]
SOURCE = SourceOptions("small_network:build", data="small_network:batches")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("finished") / "out"
    with chdir(TESTS):
        compress(output)
    return output


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TESTS)


@pytest.fixture
def small_tmpdir(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR on a file system of 16 kB, where the machine lets us mount one; after a run, whose
    imports have made the folders that torch keeps in TMPDIR."""
    where = tmp_path / "small"
    where.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(where)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small disk")
    monkeypatch.setattr(tempfile, "tempdir", str(where))
    yield where
    subprocess.run(["umount", str(where)], check=True)


def compress(output: Path, budget: str = "60%") -> RunResult:
    return run(RunOptions(SOURCE, FolderOptions(output, report=False), Budget.parse(budget)))


@pytest.mark.parametrize("budget", [pytest.param("60%", marks=pytest.mark.slow), "bytes=36kB"])
def test_a_run_with_a_small_tmpdir_says_so_and_resumes(
    budget: str, small_tmpdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LrcompressError, match=r"no space left for temporary files.*TMPDIR"):
        compress(tmp_path / "out", budget)
    assert list(small_tmpdir.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert compress(tmp_path / "out", budget).report.verified


def test_commands_with_a_small_tmpdir_say_so(finished: Path, small_tmpdir: Path) -> None:
    graph = str(finished / "model.onnx")
    timing = ["bench", SOURCE.model, "--data", str(SOURCE.data), "--runs", "1", graph]
    for command in (["verify", graph, "--data", str(SOURCE.data)], timing):
        result = CliRunner().invoke(main.main, command)
        assert result.exit_code == 7
        assert "no space left for temporary files" in result.stderr
    import numpy as np

    with pytest.raises(LrcompressError, match="no space left for temporary files"):
        peak_memory(Path(graph), "cpu", {"x": np.zeros((200, 24), "float32")})


def test_no_place_for_temporary_files_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    with pytest.raises(LrcompressError, match="set TMPDIR"), scratch_folder():
        pass


def test_other_errors_within_a_temporary_folder_stay_what_they_are() -> None:
    with pytest.raises(ModelError, match="corrupt"), scratch_folder() as folder:
        raise ModelError("corrupt")
    assert not folder.exists()


def test_bench_shows_its_table_whatever_becomes_of_the_reports(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three runs timed at once, none of whose reports can take the figures."""
    unwritable, damaged, not_text = (
        shutil.copytree(finished, tmp_path / name) for name in ("unwritable", "damaged", "not_text")
    )
    (damaged / "report.json").write_bytes(b"{")
    (not_text / "report.json").write_bytes(b"\xff\xfe")
    replace = Path.replace

    def refused(path: Path, target: Path) -> Path:
        if Path(target).name == "report.json":
            raise PermissionError(13, "Permission denied")
        return replace(path, target)

    monkeypatch.setattr(atomic.Path, "replace", refused)
    monkeypatch.setattr(bench, "peak_memory", lambda *_, **__: PeakMemory(None, None))
    runs = (unwritable, damaged, not_text)
    arguments = ["bench", SOURCE.model, "--data", str(SOURCE.data), "--runs", "1", "--batch", "1"]
    result = CliRunner().invoke(
        main.main, [*arguments, *(str(output / "model.onnx") for output in runs)]
    )
    assert result.exit_code == 0, result.stderr
    assert "p50" in result.stdout or "ms" in result.stdout
    told = result.stderr.replace("\n", "")
    assert told.count("could not be recorded") == 3
    for output in runs:
        assert str(output / "report.json") in told


def test_bench_refuses_an_output_that_cannot_be_written_before_it_times(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["bench", SOURCE.model, str(TESTS / "conftest.py"), "--runs", "1"]
    result = CliRunner().invoke(main.main, [*arguments, "-o", str(tmp_path / "file" / "x.json")])
    assert result.exit_code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
