"""What somebody else put into an output folder is not followed, overwritten or removed, and what a
run itself leaves there is all that it lists."""

from __future__ import annotations

import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch

from lrcompress.atomic import is_temporary, write_atomically, write_together
from lrcompress.errors import ExportError, LrcompressError
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run, run_profile
from lrcompress.planning.budget import Budget

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
SOURCE = SourceOptions("small_network:build", data="small_network:batches")


def compress(output: Path, **changes: Any) -> Any:
    where = FolderOptions(output, report=False, force=changes.pop("force", False))
    fields: dict[str, Any] = {
        "source": SOURCE,
        "folder": where,
        "budget": Budget.parse("60%"),
        "rounds": 0,
        "to_onnx": False,
    }
    return run(RunOptions(**{**fields, **changes}))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with all its files; it is copied, not changed."""
    output = tmp_path_factory.mktemp("runs") / "exported"
    compress(output, to_onnx=True, pt2=True)
    return output


def copied(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def profile(output: Path, **_: Any) -> Any:
    return run_profile(SOURCE, FolderOptions(output, report=False, force=True))


# ---- locks ----------------------------------------------------------------------------------


def symbolic(path: Path, target: Path) -> None:
    path.symlink_to(target)


def hard(path: Path, target: Path) -> None:
    path.hardlink_to(target)


def pipe(path: Path, target: Path) -> None:
    os.mkfifo(path)


def listening(path: Path, target: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        here = Path.cwd()
        os.chdir(path.parent)  # the names of sockets are short
        server.bind(path.name)
        os.chdir(here)


def somebodys(path: Path, target: Path) -> None:
    path.write_text("{ yarn: 'integrity' }")


def folder(path: Path, target: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("options", [{}, {"force": True}])
@pytest.mark.parametrize("kind", [symbolic, hard, pipe, listening, somebodys, folder])
def test_a_lock_that_is_none_is_left_alone(
    kind: Callable[[Path, Path], None], options: dict[str, bool], tmp_path: Path
) -> None:
    target, output = tmp_path / "precious", tmp_path / "out"
    target.write_text("years of work")
    output.mkdir()
    kind(output / ".lock", target)
    before = os.lstat(output / ".lock")
    with pytest.raises(LrcompressError, match=r"\.lock: is not the lock|cannot be written") as told:
        compress(output, **options)
    assert str(told.value).count("\n") == 0
    assert target.read_text() == "years of work"
    after = os.lstat(output / ".lock")
    assert (after.st_ino, after.st_mode, after.st_size) == (
        before.st_ino, before.st_mode, before.st_size,
    )  # fmt: skip


# ---- folders --------------------------------------------------------------------------------


@pytest.mark.parametrize("work", [compress, profile])
@pytest.mark.parametrize("name", ["profile", "work", "1_Pooling"])
def test_a_folder_behind_a_link_is_left_alone(
    name: str, work: Callable[..., Any], tmp_path: Path
) -> None:
    target, output = tmp_path / "precious", tmp_path / "out"
    for path in ("profile.json", "moments-00000.safetensors", f"{'a' * 16}/thesis", ".x.part"):
        (target / path).parent.mkdir(parents=True, exist_ok=True)
        (target / path).write_text("years of work")
    output.mkdir()
    (output / "stages.json").write_text("{}")  # as of a run, so that it would clean up
    (output / name).symlink_to(target)
    before = sorted(target.rglob("*"))
    with pytest.raises(LrcompressError, match=f"{name}: is a link"):
        work(output, force=True)
    assert sorted(target.rglob("*")) == before
    assert {p.read_text() for p in target.rglob("*") if p.is_file()} == {"years of work"}


def test_a_stage_s_folder_behind_a_link_is_left_alone(tmp_path: Path) -> None:
    target, output = tmp_path / "precious", tmp_path / "out"
    target.mkdir()
    (target / "thesis").write_text("years of work")
    (output / "work").mkdir(parents=True)
    (output / "work" / ("a" * 16)).symlink_to(target)
    compress(output, force=True)
    assert (target / "thesis").read_text() == "years of work"


FILES = (
    "plan.json", "model.safetensors", "lrcompress.json", "model.onnx", "report.json", "stages.json",
    ".plan.json.part", ".model.onnx.part", "profile/profile.json",
    "profile/spectra.safetensors", "profile/moments-00000.safetensors",
)  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "to_onnx"),
    [(symbolic, True), (hard, False), pytest.param(hard, True, marks=pytest.mark.slow)],
)
def test_links_in_the_place_of_files_are_replaced(
    kind: Callable[[Path, Path], None], *, to_onnx: bool, tmp_path: Path
) -> None:
    target, output = tmp_path / "precious", tmp_path / "out"
    target.write_text("years of work")
    names = [name for name in FILES if to_onnx or "model.onnx" not in name]
    for name in names:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        kind(output / name, target)
    assert compress(output, to_onnx=to_onnx, force=True).report.verified is to_onnx
    assert target.read_text() == "years of work"
    for name in names:
        if not is_temporary(Path(name)):
            assert not (output / name).is_symlink()
            assert (output / name).stat().st_nlink == 1, name


@pytest.mark.timeout(60)
def test_pipes_in_the_place_of_files_are_not_waited_for(tmp_path: Path) -> None:
    output = tmp_path / "out"
    for name in FILES:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        os.mkfifo(output / name)
    assert compress(output, to_onnx=True, force=True).report.verified


@pytest.mark.parametrize("name", [x for x in FILES if "part" not in x and "moments" not in x])
def test_a_folder_in_the_place_of_a_file_is_told_before_the_work(name: str, tmp_path: Path) -> None:
    (tmp_path / name).mkdir(parents=True)
    with pytest.raises(LrcompressError, match="is a folder where a run writes a file"):
        compress(tmp_path, force=True)


@pytest.mark.parametrize("to_onnx", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_an_output_folder_may_be_a_link(*, to_onnx: bool, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert compress(tmp_path / "out", to_onnx=to_onnx).report.verified is to_onnx
    assert (tmp_path / "disk" / "model.safetensors").is_file()
    assert (tmp_path / "disk" / "model.onnx").is_file() is to_onnx


def test_a_ledger_names_nothing_outside_of_its_folder(tmp_path: Path) -> None:
    target, output = tmp_path / "precious", tmp_path / "out"
    target.write_text("years of work")
    compress(output)
    ledger = json.loads((output / "stages.json").read_text())
    for name in ("../precious", str(target), "a/../../precious"):
        edited = {**ledger, "replaced": {name: "0" * 64}}
        (output / "stages.json").write_text(json.dumps(edited))
        with pytest.raises(LrcompressError, match=r"stages\.json: damaged"):
            compress(output)
    assert target.read_text() == "years of work"


# ---- what is left ---------------------------------------------------------------------------


def test_files_that_no_stage_makes_any_more_go(exported: Path, tmp_path: Path) -> None:
    output = copied(exported, tmp_path / "out")
    assert (output / "model.pt2").is_file()
    (output / "notes.txt").write_text("mine")
    result = compress(output, budget=Budget.parse("50%"), to_onnx=True)
    assert not (output / "model.pt2").exists()
    assert (output / "notes.txt").read_text() == "mine"
    assert "model.pt2" not in {file.name for file in result.report.files}
    assert json.loads((output / "stages.json").read_text())["replaced"] == {}


def test_a_replaced_file_that_somebody_changed_stays(exported: Path, tmp_path: Path) -> None:
    output = copied(exported, tmp_path / "out")
    (output / "model.pt2").write_text("mine now")
    compress(output, budget=Budget.parse("50%"))
    assert (output / "model.pt2").read_text() == "mine now"


def test_what_an_export_left_half_written_goes_and_is_never_listed(
    exported: Path, tmp_path: Path
) -> None:
    output = copied(exported, tmp_path / "out")
    left = output / ".model.onnx.part"
    (left / ".model.onnx.data.x").mkdir(parents=True)
    (left / "model.onnx").write_text("half")
    (output / ".gitignore").write_text("*")
    result = compress(output, to_onnx=True, pt2=True)
    assert not left.exists()
    names = {file.name for file in result.report.files}
    assert not [name for name in names if is_temporary(Path(name)) or ".part" in name]
    assert ".gitignore" in names


# ---- sets of files --------------------------------------------------------------------------


def test_a_set_of_files_is_whole_or_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [tmp_path / "graph", tmp_path / "graph.data"]

    def writes(text: str) -> Callable[[Path], None]:
        def write(folder: Path) -> None:
            for path in paths:
                (folder / path.name).write_text(text)

        return write

    write_together(paths, writes("old"))
    replace_, calls = Path.replace, []

    def stops(path: Path, target: Path) -> Path:
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return replace_(path, target)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", stops)
        with pytest.raises(KeyboardInterrupt):
            write_together(paths, writes("new"))
    assert not paths[0].exists(), "an old graph beside new data"
    assert [path.name for path in tmp_path.iterdir()] == ["graph.data"]
    write_together(paths, writes("new"))
    assert [path.read_text() for path in paths] == ["new", "new"]
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("writer", [write_atomically, lambda p, w: write_together([p], w)])
def test_a_failed_write_leaves_the_old_file_alone(
    writer: Callable[..., None], tmp_path: Path
) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def fails(_: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(LrcompressError, match="no space left on its disk"):
        writer(path, fails)
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def test_external_data_give_way_to_one_file_and_back(tmp_path: Path) -> None:
    module, batch = torch.nn.Linear(24, 40).eval(), {"input": torch.randn(2, 24)}
    path = tmp_path / "model.onnx"
    for external in (True, False, True):
        export_onnx(module, batch, path, ExportOptions(external_data=external))
        names = {p.name for p in tmp_path.iterdir()}
        assert names == {"model.onnx", "model.onnx.data"} if external else names == {"model.onnx"}
        onnx.checker.check_model(str(path))


def test_an_export_to_a_full_disk_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import onnx_ir

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx_ir, "save", full)
    module, batch = torch.nn.Linear(3, 2).eval(), {"input": torch.randn(2, 3)}
    with pytest.raises(ExportError, match="no space left on its disk"):
        export_onnx(module, batch, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
