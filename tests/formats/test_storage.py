"""What is saved comes back to the bit, appears whole or not at all, and is distrusted politely.

LRCOMPRESS_FUZZ is the number of edits that each fuzz test tries (default 60).
"""

from __future__ import annotations

import copy
import dataclasses
import errno
import json
import os
import shutil
import subprocess
import sys
import tempfile
import venv
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import distribution
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import tiny_models
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lrcompress.atomic import write_atomically
from lrcompress.compression.replace import install_
from lrcompress.errors import DataError, LrcompressError, ModelError, PlanError
from lrcompress.export.pt2 import save_pt2
from lrcompress.fingerprint import model_fingerprint
from lrcompress.formats.moments import DiskMoments, MomentsWriter
from lrcompress.formats.profile_json import load_profile, save_profile
from lrcompress.formats.run_json import read_record
from lrcompress.layers import LayerSpec, LeftAlone, describe, weight_matrix
from lrcompress.metrics import LayerMoments, MomentStore, Sensitivity, Whitening
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import CurvePoint, LayerProfile, Profile
from lrcompress.profiling.spectrum import measure
from lrcompress.sources.compressed_model import load, save_compressed
from lrcompress.sources.example import example_batch
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.models import load_model
from lrcompress.structures import (
    Blast,
    BlockDiagonal,
    Dense,
    Interpolative,
    LowRank,
    Structure,
)

KINDS = tuple(tiny_models.MODELS)
# One product split in two is summed in another order: a few float32 units in the last place
ATOL = 64 * torch.finfo(torch.float32).eps


def complaint(action: Callable[[], object], kind: type[LrcompressError]) -> str:
    """The message of the error that `action` raises: one printable line with a next step."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    assert ";" in message, "no next step"
    return message


def _names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- files


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, lambda p: p.write_text("old"))

    def fails(temporary: Path) -> None:
        temporary.write_text("half of the n")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, fails)
    assert path.read_text() == "old"
    assert _names(tmp_path) == ["file"]


def test_the_name_is_on_the_disk_after_the_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    flush, rename = os.fsync, Path.replace
    monkeypatch.setattr(os, "fsync", lambda d: (calls.append("fsync"), flush(d)))
    monkeypatch.setattr(Path, "replace", lambda p, to: (calls.append("replace"), rename(p, to)))
    write_atomically(tmp_path / "file", lambda p: p.write_text("x"))
    assert calls == ["fsync", "replace", "fsync"]


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space"),
        (errno.EDQUOT, "no space"),
        (errno.EROFS, "read-only"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "cannot be written"),
    ],
)
def test_system_errors_are_one_line(tmp_path: Path, number: int, said: str) -> None:
    def fails(temporary: Path) -> None:
        temporary.touch()
        raise OSError(number, os.strerror(number))

    assert said in complaint(lambda: write_atomically(tmp_path / "a", fails), LrcompressError)
    assert _names(tmp_path) == []


def test_a_file_in_the_place_of_a_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "below", tmp_path / "file" / "far" / "below", tmp_path):
        message = complaint(lambda p=path: write_atomically(p, Path.touch), LrcompressError)
        assert "choose another output folder" in message


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 32 kB, where the machine lets us mount one."""
    where = tmp_path / "small"
    where.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(where)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("no permission to mount a small disk")
    yield where
    subprocess.run(["umount", str(where)], check=True)


def test_a_full_disk_is_one_line_and_leaves_nothing(small_disk: Path, bert: LoadedModel) -> None:
    moments = LayerMoments(torch.ones(1, 200, 200), torch.ones(1, 200), torch.ones(1, 200), 9, 3)

    wide = nn.Sequential(nn.Linear(200, 200))

    def write_moments() -> None:
        writer = MomentsWriter(small_disk)
        writer.add("a", "a", moments)
        writer.finish()

    writers: list[Callable[[], object]] = [
        write_moments,
        lambda: save_compressed(bert.module, _plan({}), bert, small_disk, extra={}),
        lambda: save_pt2(wide, {"input": torch.ones(2, 200)}, small_disk / "model.pt2"),
        lambda: write_atomically(small_disk / "t", lambda p: p.write_text("x" * 100_000)),
    ]
    for write in writers:
        message = complaint(write, LrcompressError)
        assert "no space" in message
        assert _names(small_disk) == []


def test_a_read_only_disk_is_one_line(small_disk: Path) -> None:
    remount = ["mount", "-o", "remount,ro", str(small_disk)]
    subprocess.run(remount, check=True, capture_output=True)
    message = complaint(lambda: save_profile(_profile(), small_disk / "profile"), LrcompressError)
    assert "read-only" in message


# --- profiles


def _spec(name: str, m: int, n: int, **fields: Any) -> LayerSpec:
    return LayerSpec(name, fields.pop("kind", "linear"), m, n, fields.pop("groups", 1), **fields)


def _moment(groups: int, k: int) -> Tensor:
    rows = torch.randn(groups, 3 * k, k)
    return rows.mT @ rows / k  # float32: what the disk holds


def _moments(spec: LayerSpec, shared: LayerMoments | None = None) -> LayerMoments:
    g, m, n = spec.groups, spec.out_features, spec.in_features
    sensitivity = Sensitivity(_moment(g, n), _moment(g, m), torch.randn(g, n), torch.rand(g))
    if shared is not None:  # such a layer's bias is read elsewhere too
        sensitivity = dataclasses.replace(sensitivity, cross=None, bias=None)
        return dataclasses.replace(shared, sensitivity=sensitivity)
    return LayerMoments(_moment(g, n), torch.randn(g, n), torch.rand(g, n), 30, 10, sensitivity)


def _curve(*points: tuple[Structure, float]) -> tuple[CurvePoint, ...]:
    return tuple(CurvePoint(*point) for point in points)


CURVES = {
    "a.query": (
        _curve((Interpolative(1, chunk=1), 0.5), (Interpolative(2, chunk=1), 0.25)),
        _curve((BlockDiagonal(0, blocks=2), 0.5), (BlockDiagonal(1, blocks=2), 0.125)),
    ),
    "a.key": (_curve((Blast(1, blocks=2), 0.25), (Blast(2, blocks=2, blocks_in=3), 0.25)),),
}


def _layer(spec: LayerSpec, group: str) -> LayerProfile:
    spectrum = torch.rand(min(spec.out_features, spec.in_features), dtype=torch.float64)
    spectra = {"plain": spectrum.sort(descending=True).values}
    spectra["two-sided"] = spectra["plain"] / 3
    return LayerProfile(
        spec=spec,
        measures=measure(spectra["plain"], spec.out_features, spec.in_features),
        spectra=spectra,
        rows_per_example=2.5,
        input_group=group,
        shrinkage=0.125,
        centred=True,
        curves=CURVES.get(spec.name, ()),
        curves_metric="two-sided",
    )


def _profile() -> Profile:
    torch.manual_seed(0)
    specs = [
        (_spec("a.query", 6, 5, bias=True), "a"),
        (_spec("a.key", 4, 5, bias=False), "a"),
        (_spec("conv", 3, 8, bias=True, kind="conv2d", groups=2), "conv"),
        (_spec("table", 7, 50, bias=False, kind="embedding", tied=("head",)), "table"),
    ]
    layers = tuple(_layer(spec, group) for spec, group in specs)
    query = _moments(layers[0].spec)
    diagonal = LayerMoments(torch.rand(1, 50), torch.rand(1, 50), torch.rand(1, 50), 30, 10)
    return Profile(
        layers=layers,
        left_alone=(LeftAlone("norm", "LayerNorm", 12, "not a matrix"),),
        metric="two-sided",
        objective="cosine",
        model_fingerprint="ab" * 32,
        data_fingerprint="",
        examples=10,
        tokens=30,
        total_params=500,
        total_bytes=2000,
        total_flops_per_example=1e6,
        seed=0,
        warnings=("few tokens: «30»",),
        moments={
            "a.query": query,
            "a.key": _moments(layers[1].spec, shared=query),
            "conv": _moments(layers[2].spec),
            "table": diagonal,
        },
    )


def assert_same_moments(found: MomentStore, wanted: MomentStore) -> None:
    assert list(found) == list(wanted)
    for name, moments in wanted.items():
        assert_same(found[name], moments)


def assert_same(one: object, two: object) -> None:
    if isinstance(two, Tensor):
        assert torch.equal(one, two)
    elif isinstance(two, LayerMoments | Sensitivity):
        for field in dataclasses.fields(two):
            assert_same(getattr(one, field.name), getattr(two, field.name))
    else:
        assert one == two


def test_a_profile_comes_back_as_it_was(tmp_path: Path) -> None:
    profile = _profile()
    save_profile(profile, tmp_path / "profile")
    shutil.move(tmp_path / "profile", tmp_path / "moved")
    found = load_profile(tmp_path / "moved")
    for field in dataclasses.fields(Profile):
        if field.name not in ("layers", "moments"):
            assert getattr(found, field.name) == getattr(profile, field.name)
    for one, two in zip(found.layers, profile.layers, strict=True):
        assert (one.spec, one.measures, one.input_group) == (
            two.spec,
            two.measures,
            two.input_group,
        )
        assert (one.shrinkage, one.centred) == (two.shrinkage, two.centred)
        assert one.rows_per_example == two.rows_per_example
        assert list(one.spectra) == list(two.spectra)
        assert all(torch.equal(one.spectra[k], v) for k, v in two.spectra.items())
    assert_same_moments(found.moments, profile.moments)


def test_layers_of_one_group_share_their_input_moment_on_the_disk(tmp_path: Path) -> None:
    save_profile(_profile(), tmp_path)
    (shard,) = tmp_path.glob("moments-*.safetensors")
    names = {name for name in load_file(shard) if name.startswith("input/")}
    assert names == {"input/a", "input/conv", "input/table"}


def test_moments_are_read_when_asked_for(tmp_path: Path) -> None:
    save_profile(_profile(), tmp_path)
    moments = load_profile(tmp_path).moments
    (shard,) = tmp_path.glob("moments-*.safetensors")
    shard.unlink()
    assert "conv" in moments
    assert len(moments) == 4
    with pytest.raises(DataError):
        moments["conv"]


def test_shards_keep_memory_bounded(tmp_path: Path) -> None:
    profile = _profile()
    writer = MomentsWriter(tmp_path, shard_bytes=1)
    for layer in profile.layers:
        writer.add(layer.name, layer.input_group, profile.moments[layer.name])
    shards = sorted(tmp_path.glob("moments-*.safetensors"))
    assert len(shards) == len(profile.layers)
    save_profile(dataclasses.replace(profile, moments=writer.finish()), tmp_path)
    assert sorted(tmp_path.glob("moments-*.safetensors")) == shards  # saved in place, not copied
    assert_same_moments(load_profile(tmp_path).moments, profile.moments)


def test_saving_elsewhere_copies_the_moments(tmp_path: Path) -> None:
    save_profile(_profile(), tmp_path / "one")
    save_profile(load_profile(tmp_path / "one"), tmp_path / "two")
    shutil.rmtree(tmp_path / "one")
    assert_same_moments(load_profile(tmp_path / "two").moments, _profile().moments)


def test_a_profile_being_rewritten_is_none(tmp_path: Path) -> None:
    save_profile(_profile(), tmp_path)
    writer = MomentsWriter(tmp_path, shard_bytes=1)
    writer.add("conv", "conv", _profile().moments["conv"])
    assert "profile.json" in complaint(lambda: load_profile(tmp_path), DataError)
    writer.add("a.key", "a", _profile().moments["a.key"])
    assert len(writer.finish()) == 2
    (tmp_path / "moments-00009.safetensors").touch()  # of a longer profile before
    assert isinstance(MomentsWriter(tmp_path).finish(), DiskMoments)
    assert list(tmp_path.glob("moments-*")) == []


def test_a_profile_without_moments_comes_back(tmp_path: Path) -> None:
    save_profile(dataclasses.replace(_profile(), moments={}), tmp_path)
    assert len(load_profile(tmp_path).moments) == 0


BLOCKS = {"type": "block_diagonal", "rank": 0, "blocks": 2, "loss": 0.5}
POINT = {"type": "blast", "rank": 1, "blocks": 2, "loss": 0.5}


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (("schema_version",), 99, "schema_version"),
        (("schema_version",), True, "schema_version"),
        (("examples",), "ten", "examples"),
        (("total_flops_per_example",), "1e6", "total_flops_per_example"),
        (("warnings",), "none", "warnings"),
        (("layers",), {}, "layers"),
        (("layers",), [], "layers is empty"),
        (("layers", 1), 3, "layers[1]"),
        (("layers", 1, "rows_per_example"), -1, "layers[1].rows_per_example"),
        (("layers", 1, "shrinkage"), 1.0, "layers[1].shrinkage"),
        (("layers", 1, "kind"), "conv7d", "layers[1].kind"),
        (("layers", 1, "out_features"), 0, "layers[1].out_features"),
        (("layers", 1, "out_features"), 3, "spectrum"),
        (("layers", 1, "in_features"), 6, "moment"),
        (("layers", 1, "name"), "a.value", "no spectrum of a.value"),
        (("layers", 0, "name"), "a.key", "twice"),
        (("layers", 3, "tied"), [1], "layers[3].tied[0]"),
        (("layers", 1, "measures", "e90"), 1.5, "measures.e90"),
        (("layers", 0, "curves"), [[]], "curves[0]: the curve of a.query is empty"),
        (("layers", 0, "curves"), [0], "curves of a.query must be a list of lists, not [0]"),
        (("layers", 0, "curves", 1), [7], "[1][0]: a point of a.query must be an object {...}"),
        (("layers", 0, "curves", 0, 0, "loss"), -1, "a.query"),
        (("layers", 0, "curves", 0, 0, "loss"), 0.125, "a.query has a larger loss at Interpolat"),
        (("layers", 0, "curves", 0, 0, "loss"), 1e308, "a.query has a loss many times"),
        (("layers", 0, "curves", 0, 0, "rank"), 2, "a.query does not grow"),
        (("layers", 0, "curves", 0, 0, "rank"), 3, "a.query does not grow"),
        (("layers", 0, "curves", 0, 0, "rank"), -1, "a.query"),
        (("layers", 0, "curves", 1, 0), {**BLOCKS, "chunk": -3}, "a.query: chunk -3"),
        (("layers", 0, "curves", 0, 0), POINT, "a.query mixes the structures blast, interpolative"),
        (("layers", 0, "curves", 0), [{"type": "low_rank", "rank": 1, "loss": 0.5}], "a.query"),
        (("layers", 0, "curves_metric"), "plane", "a.query has no spectrum"),
        (("left_alone", 0, "params"), None, "left_alone[0].params"),
        (("moments",), None, "moments"),
        (("moments", "shards", 0), "moments-00007.safetensors", "moments-00007.safetensors"),
        (("moments", "shards", 0), "../elsewhere.safetensors", "moments.shards"),
        (("moments", "shards"), [], "a.query"),
        (("moments", "layers", "conv", "rows"), "3", "moments.layers.conv.rows"),
        (("moments", "layers", "conv", "input_group"), "x", "conv"),
    ],
)
def test_an_edited_profile_is_refused_by_field(
    tmp_path: Path, path: tuple[str | int, ...], value: object, said: str
) -> None:
    save_profile(_profile(), tmp_path)
    _edit(tmp_path / "profile.json", path, value)
    assert said in complaint(lambda: load_profile(tmp_path), DataError)


@pytest.mark.parametrize("name", ["spectra.safetensors", "moments-00000.safetensors"])
def test_damaged_tensors_of_a_profile_are_named(tmp_path: Path, name: str) -> None:
    save_profile(_profile(), tmp_path)
    whole = (tmp_path / name).read_bytes()
    for bytes_left in (b"", whole[:5], whole[: len(whole) // 2], whole[:-1]):
        (tmp_path / name).write_bytes(bytes_left)
        assert name in complaint(lambda: load_profile(tmp_path), DataError)
    (tmp_path / name).unlink()
    assert name in complaint(lambda: load_profile(tmp_path), DataError)


@pytest.mark.parametrize(
    "values", [[float("nan"), 1.0], [1.0, 2.0], [1.0, -1.0], [], [[1.0], [1.0]]]
)
def test_a_spectrum_that_is_none_is_named(tmp_path: Path, values: list[Any]) -> None:
    save_profile(_profile(), tmp_path)
    spectra = load_file(tmp_path / "spectra.safetensors")
    spectra["two-sided/conv"] = torch.tensor(values, dtype=torch.float64)
    save_file(spectra, tmp_path / "spectra.safetensors")
    assert "two-sided/conv" in complaint(lambda: load_profile(tmp_path), DataError)


def test_moments_that_are_not_finite_are_named(tmp_path: Path) -> None:
    save_profile(_profile(), tmp_path)
    (shard,) = tmp_path.glob("moments-*.safetensors")
    moments = load_file(shard)
    moments["sensitivity.output/a.key"][0, 1, 1] = float("nan")
    save_file(moments, shard)
    found = load_profile(tmp_path).moments
    assert "sensitivity.output/a.key" in complaint(lambda: found["a.key"], DataError)
    assert found["a.query"].rows == 30


# --- fuzz: whatever a file says, only our own errors may escape

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["low_rank", "dense", "blast", "linear", "a", "a.key", 10**30, 1e308]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)
FUZZ = settings(
    max_examples=int(os.environ.get("LRCOMPRESS_FUZZ", "60")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def _places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """Every place in a JSON value."""
    inner: list[tuple[Any, Any]] = []
    if isinstance(value, dict):
        inner = list(value.items())
    elif isinstance(value, list):
        inner = list(enumerate(value))
    return [path, *(place for key, item in inner for place in _places(item, (*path, key)))]


def _edit(file: Path, path: tuple[str | int, ...], value: object) -> None:
    file.write_text(json.dumps(_edited(json.loads(file.read_text()), path, value)))


def _edited(whole: Any, path: tuple[str | int, ...], value: object) -> Any:
    if not path:
        return value
    whole[path[0]] = _edited(whole[path[0]], path[1:], value)
    return whole


def _removed(whole: Any, path: tuple[str | int, ...]) -> Any:
    for key in path[:-1]:
        whole = whole[key]
    if path:
        del whole[path[-1]]


@pytest.fixture(scope="module")
def saved_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile")
    save_profile(_profile(), folder)
    return folder


@FUZZ
@given(data=st.data())
def test_no_edit_of_profile_json_escapes(saved_profile: Path, data: st.DataObject) -> None:
    """What is read can be planned from."""
    _fuzz(saved_profile, "profile.json", lambda folder: plan(load_profile(folder), "70%"), data)


@FUZZ
@given(data=st.data())
def test_no_edit_of_a_loss_curve_escapes(saved_profile: Path, data: st.DataObject) -> None:
    layer = data.draw(st.sampled_from([0, 1]))
    _fuzz(
        saved_profile,
        "profile.json",
        lambda folder: plan(load_profile(folder), "70%"),
        data,
        within=("layers", layer, "curves"),
    )


@FUZZ
@given(data=st.data())
def test_no_edit_of_lrcompress_json_escapes(saved_run: Path, data: st.DataObject) -> None:
    _fuzz(saved_run, "lrcompress.json", load, data)


def _fuzz(
    folder: Path,
    name: str,
    read: Callable[[Path], object],
    data: st.DataObject,
    within: tuple[str | int, ...] = (),
) -> None:
    """Change or remove one place of the file, or replace it by arbitrary text."""
    whole = json.loads((folder / name).read_text())
    part = whole
    for key in within:
        part = part[key]
    place = (*within, *data.draw(st.sampled_from(_places(part))))
    action = data.draw(st.sampled_from(["change", "remove", "text"]))
    if action == "change":
        text = json.dumps(_edited(whole, place, data.draw(JSON)))
    elif action == "remove":
        _removed(whole, place)
        text = json.dumps(whole)
    else:
        text = data.draw(st.text(max_size=40))
    with tempfile.TemporaryDirectory() as copied:
        shutil.copytree(folder, copied, dirs_exist_ok=True)
        (Path(copied) / name).write_text(text, encoding="utf-8", errors="surrogatepass")
        message = ""
        try:
            read(Path(copied))
        except LrcompressError as error:
            message = str(error)
        assert message == "" or message.isprintable()


# --- compressed models


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_models.save(kind, root / kind, layers=1)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def bert(folders: dict[str, Path]) -> LoadedModel:
    return load_model(str(folders["bert"]))


def _plan(structures: Mapping[str, Structure]) -> Any:
    """The two fields of a Plan that storage reads."""
    layers = [SimpleNamespace(name=name, structure=s) for name, s in structures.items()]
    return SimpleNamespace(model_fingerprint="cd" * 32, layers=layers)


def _compress_(module: nn.Module, *, add_bias: bool = False) -> dict[str, Structure]:
    """Every second layer by low rank, the others dense; the structures by name."""
    chosen: dict[str, Structure] = {}
    for i, spec in enumerate(describe(module).layers):
        if i % 2:
            chosen[spec.name] = Dense(reason="for the test")
            continue
        structure = LowRank(max(1, spec.break_even_rank // 2))
        layer = module.get_submodule(spec.name)
        factors = structure.fit(weight_matrix(layer), Whitening(), spec)
        bias = getattr(layer, "bias", None)
        if bias is None and add_bias and spec.kind != "embedding":
            bias = torch.linspace(0, 1, spec.groups * spec.out_features)
        install_(module, spec, structure, factors, bias)
        chosen[spec.name] = structure
    return chosen


def _compressed(folder: Path, target: Path, **options: bool) -> nn.Module:
    loaded = load_model(str(folder))
    chosen = _compress_(loaded.module, **options)
    save_compressed(loaded.module, _plan(chosen), loaded, target, extra={"command": "compress"})
    return loaded.module


def _outputs(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return module(**batch)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_comes_back_to_the_bit_wherever_it_is_moved(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    saved = _compressed(folders[kind], tmp_path / "run")
    shutil.move(tmp_path / "run", tmp_path / "moved")
    loaded = load_model(str(tmp_path / "moved"))
    assert loaded.reference.kind == "run"
    assert model_fingerprint(loaded.module) == model_fingerprint(saved)
    batch = example_batch(loaded)
    assert torch.equal(_outputs(loaded.module, batch), _outputs(saved, batch))
    assert not loaded.module.training
    assert not any(p.requires_grad for p in load(tmp_path / "moved").parameters())
    dense = load_model(str(folders[kind])).module
    assert describe(loaded.module).total_params < describe(dense).total_params


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_tied_head_shares_its_factors_after_reloading(
    kind: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    saved = _compressed(folders[kind], tmp_path)
    module = load(tmp_path)
    embedding = module.get_input_embeddings()
    assert module.lm_head.codes is embedding.codes
    assert module.lm_head.up is embedding.up
    names = load_file(tmp_path / "model.safetensors")
    assert not any(name.startswith("lm_head") for name in names)
    count = sum(p.numel() for p in saved.parameters())
    assert sum(t.numel() for t in names.values()) == count
    assert sum(p.numel() for p in module.parameters()) == count


def test_a_run_carries_what_makes_it_usable(folders: dict[str, Path], tmp_path: Path) -> None:
    _compressed(folders["bert"], tmp_path)
    loaded = load_model(str(tmp_path))
    assert {path.name for path in loaded.companions} == {
        "config.json", "tokenizer.json", "tokenizer_config.json"
    }  # fmt: skip
    assert not list(tmp_path.glob(".*"))


def test_an_added_bias_comes_back(folders: dict[str, Path], tmp_path: Path) -> None:
    saved = _compressed(folders["llama"], tmp_path, add_bias=True)
    module = load(tmp_path)
    added = [name for name, _ in saved.named_parameters() if name.endswith("up.bias")]
    assert added
    assert all(torch.equal(module.get_parameter(n), saved.get_parameter(n)) for n in added)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_run_keeps_the_dtype_that_it_was_saved_in(
    folders: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    loaded = load_model(str(folders["llama"]))
    chosen = _compress_(loaded.module)
    loaded.module.to(dtype)
    save_compressed(loaded.module, _plan(chosen), loaded, tmp_path, extra={})
    assert {p.dtype for p in load(tmp_path).parameters()} == {dtype}
    assert json.loads((tmp_path / "lrcompress.json").read_text())["precision"] in str(dtype)
    batch = example_batch(load_model(str(tmp_path)))
    assert bool(torch.isfinite(_outputs(load(tmp_path), batch)).all())


def test_a_run_of_a_run_comes_back(folders: dict[str, Path], tmp_path: Path) -> None:
    _compressed(folders["bert"], tmp_path / "once")
    saved = _compressed(tmp_path / "once", tmp_path / "twice")
    shutil.rmtree(tmp_path / "once")
    module = load(tmp_path / "twice")
    assert model_fingerprint(module) == model_fingerprint(saved)
    assert any(name.count(".up.") + name.count(".down.") > 1 for name in module.state_dict())


def test_a_factory_run_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("stored_net.py").write_text(
        "from torch import nn\n"
        "def build():\n"
        "    convolved = nn.Conv1d(4, 12, 3, groups=2), nn.BatchNorm1d(12), nn.Flatten()\n"
        "    return nn.Sequential(*convolved, nn.Linear(72, 40), nn.Linear(40, 9, bias=False))\n"
    )
    loaded = load_model("stored_net:build")
    chosen = _compress_(loaded.module)
    save_compressed(loaded.module, _plan(chosen), loaded, tmp_path / "run", extra={})
    x = torch.randn(5, 4, 8)
    assert torch.equal(load(tmp_path / "run")(x), loaded.module(x))


def test_the_record_says_what_was_done(folders: dict[str, Path], tmp_path: Path) -> None:
    _compressed(folders["bert"], tmp_path)
    record = json.loads((tmp_path / "lrcompress.json").read_text())
    assert record["schema_version"] == 1
    assert record["source_fingerprint"] == "cd" * 32
    assert record["precision"] == "float32"
    assert record["extra"] == {"command": "compress"}
    details = record["reference"]["details"]
    assert details == {"architecture": "BertModel", "folder": str(folders["bert"].resolve())}
    low_rank = [x for x in record["layers"] if x["structure"]["type"] == "low_rank"]
    assert low_rank
    assert all(set(x["structure"]) == {"type", "rank"} for x in low_rank)


@pytest.fixture(scope="module")
def saved_run(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    _compressed(folders["bert"], folder)
    return folder


@pytest.mark.parametrize(
    ("path", "value", "kind", "said"),
    [
        (("schema_version",), 2, ModelError, "schema_version"),
        (("layers",), None, ModelError, "layers"),
        (("layers", 0, "structure", "rank"), 7000, PlanError, "7000"),
        (("layers", 0, "structure", "rank"), 7000, PlanError, "lrcompress.json"),
        (("layers", 0, "structure", "rank"), -3, PlanError, "lrcompress.json"),
        (("layers", 0, "structure", "rank"), -3, PlanError, "rank -3"),
        (("layers", 0, "structure", "rank"), 1, ModelError, "in the file"),
        (("layers", 0, "structure", "rank"), "8", PlanError, "rank"),
        (("layers", 0, "structure", "type"), "magic", PlanError, "magic"),
        (("layers", 0, "name"), "encoder.nothing", ModelError, "encoder.nothing"),
        (("layers", 0, "structure"), {"type": "dense"}, ModelError, "the file lacks"),
        (("reference", "kind"), "onnx", ModelError, "reference.kind"),
        (("reference", "details", "architecture"), "NoModel", ModelError, "NoModel"),
        (("reference", "details", "architecture"), "pipeline", ModelError, "pipeline"),
    ],
)
def test_an_edited_record_is_refused_by_name(
    saved_run: Path,
    tmp_path: Path,
    path: tuple[str | int, ...],
    value: object,
    kind: type[LrcompressError],
    said: str,
) -> None:
    folder = shutil.copytree(saved_run, tmp_path / "run")
    _edit(folder / "lrcompress.json", path, value)
    assert said in complaint(lambda: load(folder), kind)


def test_the_dense_model_is_found_from_another_directory(
    saved_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(saved_run, tmp_path / "run")
    whole = read_record(folder).reference
    assert whole.place == whole.text  # it is where the user wrote that it is
    _edit(folder / "lrcompress.json", ("reference", "text"), "models/bert")  # as seen from there
    monkeypatch.chdir(tmp_path)
    assert read_record(folder).reference.place == whole.details["folder"]


def test_a_damaged_run_is_named(saved_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved_run, tmp_path / "run")
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-1])
    assert "model.safetensors" in complaint(lambda: load(folder), ModelError)
    state = load_file(saved_run / "model.safetensors")
    name = next(n for n in state if n.endswith("down.weight"))
    state[name][0, 0] = float("nan")
    save_file(state, weights)
    assert name in complaint(lambda: load(folder), ModelError)
    weights.unlink()
    assert "model.safetensors" in complaint(lambda: load(folder), ModelError)
    (folder / "config.json").unlink()
    assert "config.json" in complaint(lambda: load(folder), ModelError)
    (folder / "lrcompress.json").unlink()
    assert "lrcompress.json" in complaint(lambda: load(folder), ModelError)


def test_code_carried_by_a_run_runs_only_when_trusted(saved_run: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(saved_run, tmp_path / "run")
    _edit(folder / "lrcompress.json", ("reference", "details"), {"remote_code": "true"})
    assert "--trust-remote-code" in complaint(lambda: load(folder), ModelError)


def test_the_fingerprint_sees_values_names_and_ties() -> None:
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    same, changed, tied = copy.deepcopy(base), copy.deepcopy(base), copy.deepcopy(base)
    changed[0].weight[0, 0].data += 1e-7
    tied[1].weight = tied[0].weight
    renamed = nn.ModuleDict({"a": base[0], "b": base[1]})
    assert model_fingerprint(base) == model_fingerprint(same)
    others = {model_fingerprint(m) for m in (changed, tied, renamed, base)}
    assert len(others) == 4


# --- programs

RELOAD = """
import sys
for name in ("lrcompress", "transformers", "safetensors"):
    sys.modules[name] = None
import torch
for kind in sys.argv[2:]:
    program = torch.export.load(kind + ".pt2").module()
    for batch, wanted in torch.load(kind + ".cases", weights_only=True):
        found = next(iter(program(**batch).values()))
        torch.testing.assert_close(found, wanted, rtol=0, atol=float(sys.argv[1]))
"""


def _cases(module: nn.Module, kind: str, path: Path) -> None:
    """Batches of several sizes, one example among them, with what the module makes of them."""
    torch.manual_seed(0)
    cases = []
    for examples, tokens in ((1, 5), (2, 16), (3, 9)):
        if kind == "vit":
            batch = {"pixel_values": torch.randn(examples, 3, 16, 16)}
        else:
            ids = torch.randint(tiny_models.VOCABULARY, (examples, tokens))
            batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            if kind == "bert":
                batch["token_type_ids"] = torch.zeros_like(ids)
        cases.append((batch, _outputs(module, batch).clone()))
    torch.save(cases, path)


def _save_program(kind: str, folder: Path, target: Path) -> None:
    loaded = load_model(str(folder))
    _compress_(loaded.module)
    save_pt2(loaded.module, example_batch(loaded), target / f"{kind}.pt2")
    _cases(loaded.module, kind, target / f"{kind}.cases")


@pytest.mark.parametrize(
    "kinds", [("bert",), pytest.param(("vit", "llama", "gpt2"), marks=pytest.mark.slow)]
)
def test_programs_reload_without_us_at_any_size(
    kinds: tuple[str, ...], folders: dict[str, Path], tmp_path: Path
) -> None:
    for kind in kinds:
        _save_program(kind, folders[kind], tmp_path)
    _reload(sys.executable, tmp_path, *kinds)


def test_a_program_carries_nothing_of_the_data_that_it_was_traced_with(tmp_path: Path) -> None:
    batch = {"input": torch.randn(500, 6)}
    save_pt2(nn.Sequential(nn.Linear(6, 6)), batch, tmp_path / "m.pt2")
    program = torch.export.load(tmp_path / "m.pt2")
    assert program.example_inputs is None
    assert (tmp_path / "m.pt2").stat().st_size < batch["input"].nbytes + 10_000
    assert program.module()(input=torch.ones(3, 6)).shape == (3, 6)


def test_a_module_that_cannot_be_traced_is_one_line(tmp_path: Path) -> None:
    class Refuses(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if float(x.sum()) > 0 else -x

    assert "torch.export" in complaint(
        lambda: save_pt2(Refuses(), {"x": torch.ones(2, 3)}, tmp_path / "m.pt2"), LrcompressError
    )
    assert _names(tmp_path) == []


@pytest.mark.slow
def test_a_program_reloads_in_an_environment_that_has_torch_alone(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    _save_program("bert", folders["bert"], tmp_path)
    venv.create(tmp_path / "clean", symlinks=True)
    python = tmp_path / "clean" / "bin" / "python"
    asked = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    packages = Path(subprocess.check_output(asked, text=True).strip())
    for name in ("torch", "numpy", *_requirements("torch")):
        for entry in {Path(str(file)).parts[0] for file in distribution(name).files or ()}:
            source = Path(str(distribution(name).locate_file(entry)))
            if entry != ".." and source.exists() and not (packages / entry).exists():
                (packages / entry).symlink_to(source)
    absent = subprocess.run(
        [python, "-I", "-c", "import lrcompress"], capture_output=True, check=False
    )
    assert b"ModuleNotFoundError" in absent.stderr
    _reload(str(python), tmp_path, "bert")


def _requirements(name: str, seen: frozenset[str] = frozenset()) -> frozenset[str]:
    """Everything that is installed and that `name` needs, without its extras."""
    for line in distribution(name).requires or ():
        needed = line.replace(";", " ").replace("(", " ").split()[0]
        needed = needed.split("=")[0].split(">")[0].split("<")[0].split("!")[0].split("~")[0]
        if "extra ==" in line or needed in seen:
            continue
        try:
            distribution(needed)
        except ModuleNotFoundError:  # for another platform
            continue
        seen = _requirements(needed, seen | {needed})
    return seen


def _reload(python: str, folder: Path, *kinds: str) -> None:
    (folder / "reload.py").write_text(RELOAD)
    command = [python, "-I", "reload.py", str(ATOL), *kinds]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
