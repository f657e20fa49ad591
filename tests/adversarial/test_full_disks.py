"""A full disk for temporary files is told as that, and what was measured is shown although it
cannot be recorded."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from lrcompress.errors import LrcompressError, ModelError
from lrcompress.export.memory import peak_memory
from lrcompress.pipeline import FolderOptions, RunOptions, RunResult, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.scratch import scratch_folder
from lrcompress_cli import main

TESTS = Path(__file__).parents[1]
SOURCE = SourceOptions("small_network:build", data="small_network:batches")


@pytest.fixture(autouse=True)
def _here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(TESTS)


@pytest.fixture
def small_tmpdir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """TMPDIR on a file system of 16 kB, where the machine lets us mount one."""
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


@pytest.mark.parametrize("budget", ["60%", "bytes=36kB"])
def test_a_run_with_a_small_tmpdir_says_so_and_resumes(
    budget: str, small_tmpdir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(LrcompressError, match=r"no space left for temporary files.*TMPDIR"):
        compress(tmp_path / "out", budget)
    assert list(small_tmpdir.iterdir()) == []
    monkeypatch.setattr(tempfile, "tempdir", None)
    assert compress(tmp_path / "out", budget).report.verified


def test_commands_with_a_small_tmpdir_say_so(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    compress(tmp_path / "out")
    graph = str(tmp_path / "out" / "model.onnx")
    request.getfixturevalue("small_tmpdir")
    bench = ["bench", SOURCE.model, "--data", str(SOURCE.data), "--runs", "1", graph]
    for command in (["verify", graph, "--data", str(SOURCE.data)], bench):
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


@pytest.mark.parametrize("what", ["unwritable", "damaged", "not text"])
def test_bench_shows_its_table_whatever_becomes_of_the_report(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    compress(output)
    if what == "unwritable":
        from lrcompress import atomic

        replace = Path.replace

        def refused(path: Path, target: Path) -> Path:
            if Path(target).name == "report.json":
                raise PermissionError(13, "Permission denied")
            return replace(path, target)

        monkeypatch.setattr(atomic.Path, "replace", refused)
    else:
        broken = b"{" if what == "damaged" else b"\xff\xfe"
        (output / "report.json").write_bytes(broken)
    arguments = ["bench", SOURCE.model, "--data", str(SOURCE.data), "--runs", "1", "--batch", "1"]
    result = CliRunner().invoke(main.main, [*arguments, str(output / "model.onnx")])
    assert result.exit_code == 0, result.stderr
    assert "p50" in result.stdout or "ms" in result.stdout
    assert "could not be recorded" in result.stderr
    assert "report.json" in result.stderr


def test_bench_refuses_an_output_that_cannot_be_written_before_it_times(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    arguments = ["bench", SOURCE.model, str(TESTS / "conftest.py"), "--runs", "1"]
    result = CliRunner().invoke(main.main, [*arguments, "-o", str(tmp_path / "file" / "x.json")])
    assert result.exit_code != 0
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
