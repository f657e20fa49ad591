"""Input of absurd size or kind is refused at once, in one line that says what is allowed."""

from __future__ import annotations

import io
import json
import os
import shutil
import stat
import struct
import time
import zipfile
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import save_file

from adversarial.commands import TESTS, lrcompress
from lrcompress.errors import DataError, LrcompressError, ModelError
from lrcompress.sources import lines, text
from lrcompress.sources.data import load_batches, load_data
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.models import load_model
from lrcompress.sources.options import DataOptions
from lrcompress_cli.exit_codes import ExitCode
from lrcompress_cli.failure import report_failure


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in tiny_models.MODELS:
        tiny_models.save(kind, root / kind)
    return {kind: root / kind for kind in tiny_models.MODELS}


@pytest.fixture(scope="module")
def bert(folders: dict[str, Path]) -> LoadedModel:
    return load_model(str(folders["bert"]))


@pytest.fixture(autouse=True)
def _soon() -> object:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < 30


def complaint(path: Path, model: LoadedModel, kind: type[LrcompressError] = DataError) -> str:
    with pytest.raises(kind) as caught:
        load_batches(str(path), model, DataOptions())
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


# ---- text


def test_a_long_line_is_cut_before_it_is_tokenised(bert: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "long.txt"
    path.write_text("the cat sat on a mat " * 1_000_000 + "\na dog\n")
    began = time.monotonic()
    (batch,) = load_batches(str(path), bert, DataOptions())
    assert time.monotonic() - began < 5  # all of it took minutes and gigabytes
    assert batch["attention_mask"].sum(1).tolist() == [4, 40]


def test_cutting_changes_no_normal_text(
    bert: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "normal.txt"
    path.write_text("\n".join("the cat sat far away " * n for n in range(1, 60)))
    cut = load_batches(str(path), bert, DataOptions())
    monkeypatch.setattr(text, "CHARACTERS_PER_TOKEN", 10**6)
    whole = load_batches(str(path), bert, DataOptions())
    for one, other in zip(cut, whole, strict=True):
        assert all(torch.equal(one[name], other[name]) for name in other)


def test_a_gigabyte_of_short_lines_is_drawn_from(
    bert: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the bound, made smaller: a part is drawn from all of it, all of it is refused."""
    monkeypatch.setattr(text, "MOST_CHARACTERS", 10_000)
    path = tmp_path / "many.txt"
    path.write_text("the cat sat\n" * 10_000)
    drawn = load_batches(str(path), bert, DataOptions(max_examples=100))
    assert sum(len(batch["input_ids"]) for batch in drawn) == 100
    assert "--max-examples" in complaint(path, bert)
    with pytest.raises(DataError, match="--max-examples"):
        load_batches(str(path), bert, DataOptions(max_examples=9_000))


def test_a_long_record_is_refused(
    bert: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "LONGEST_RECORD", 1000)
    monkeypatch.setattr(lines, "PORTION", 100)
    path = tmp_path / "long.jsonl"
    path.write_text('{"text": "the cat"}\n{"text": "' + "the cat " * 500 + '"}\n')
    assert f"{path}:2: a line of more than 1,000 characters" in complaint(path, bert)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (b"\0" * 1_000_000, 1),
        (b"the cat\n" + b"\0" * 1000, 2),
        ("the cat\na dog\n".encode("utf-16"), 1),
        ("the cat\na dog\n".encode("utf-16-le"), 1),
        ("the cat\na dög\n".encode("latin-1"), 2),
        (b"the cat\xff" + b"a" * 1_000_000, 1),
    ],
)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl"])
def test_another_encoding_is_named_with_its_line(
    content: bytes, line: int, suffix: str, bert: LoadedModel, tmp_path: Path
) -> None:
    if suffix == ".jsonl" and line == 2:
        content = content.replace(b"the cat", b'"the cat"', 1)
    path = tmp_path / f"data{suffix}"
    path.write_bytes(content)
    assert f"{path}:{line}: not UTF-8 text" in complaint(path, bert)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_line_ends_and_marks_of_other_systems(
    end: str, mark: str, bert: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes((mark + end.join(["the cat", "a dog sat", "", "  "])).encode())
    (batch,) = load_batches(str(path), bert, DataOptions())
    assert batch["attention_mask"].sum(1).tolist() == [4, 5]
    assert not bool((batch["input_ids"] == tiny_models.SPECIAL.index("[UNK]")).any())


def test_deep_json_is_one_line(bert: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "deep.jsonl"
    for deep in ("[" * 200_000, '{"a":' * 200_000, '{"text": "\\ud800"'):
        path.write_text(deep)
        assert "deep.jsonl:1:" in complaint(path, bert)


def test_a_lone_surrogate_in_a_record_is_no_crash(bert: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text('{"text": "the \\ud800 cat"}\n')
    assert "data.jsonl" in complaint(path, bert)


# ---- arrays


def npz(path: Path, **members: bytes) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"{name}.npy", content)


def npy(shape: object, content: bytes, dtype: str = "<i8") -> bytes:
    header = repr({"descr": dtype, "fortran_order": False, "shape": shape}).encode()
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def bomb(path: Path) -> None:
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
        archive.open("input_ids.npy", "w", force_zip64=True) as member,
    ):
        member.write(npy((2**27,), b""))
        for _ in range(2**10):
            member.write(bytes(2**20))


def flag(path: Path, offset: int, value: bytes) -> None:
    """Edit a field of the local and of the central header of the first member."""
    np.savez(path, input_ids=np.ones((4, 3), np.int64))
    whole = bytearray(path.read_bytes())
    for magic, place in ((b"PK\x03\x04", offset), (b"PK\x01\x02", offset + 2)):
        at = whole.index(magic) + place
        whole[at : at + 2] = value
    path.write_bytes(bytes(whole))


def twice(path: Path) -> None:
    content = io.BytesIO()
    np.save(content, np.ones((4, 3), np.int64))
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("input_ids.npy", content.getvalue())
        archive.writestr("input_ids", content.getvalue())


ARRAYS: dict[str, Callable[[Path], None]] = {
    "bomb": bomb,
    "encrypted": lambda path: flag(path, 6, b"\x01\x00"),
    "unknown method": lambda path: flag(path, 8, b"\x63\x00"),
    "impossible size": lambda path: npz(path, input_ids=npy((2**62, 8), b"\0" * 8)),
    "negative size": lambda path: npz(path, input_ids=npy((-4, 3), b"\0" * 96)),
    "more than there is": lambda path: npz(path, input_ids=npy((2**31,), b"\0" * 8)),
    "no shape": lambda path: npz(path, input_ids=npy("x", b"")),
    "objects": lambda path: npz(path, input_ids=npy((3,), b"\0" * 24, "|O")),
    "fields": lambda path: npz(path, input_ids=npy((3,), b"\0" * 24, "<M8[s]")),
    "texts": lambda path: npz(path, input_ids=npy((3,), b"abc", "|S1")),
    "huge header": lambda path: npz(path, input_ids=npy((3,) * 5_000, b"")),
    "no header": lambda path: npz(path, input_ids=b""),
    "text": lambda path: path.write_text("the cat"),
    "an .npy": lambda path: path.write_bytes(npy((3,), b"\0" * 24)),
    "twice": twice,
    "large whole numbers": lambda path: np.savez(path, input_ids=np.full((2, 3), 2**63, np.uint64)),
    "a number too large": lambda path: np.savez(path, pixel_values=np.full((2, 3, 16, 16), 1e300)),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_bad_arrays_are_one_line(
    kind: str, folders: dict[str, Path], bert: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "data.npz"
    ARRAYS[kind](path)
    model = load_model(str(folders["vit"])) if kind == "a number too large" else bert
    message = complaint(path, model)
    assert message.isprintable()


def test_a_file_larger_than_the_memory(bert: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "data.safetensors"
    size = 2**43
    content = header({"input_ids": tensor("I64", [2**40], 0, size)})
    path.write_bytes(content)
    os.truncate(path, len(content) + size)  # without a block on the disk
    assert "larger than the memory" in complaint(path, bert)


def test_booleans_are_data_like_any_other(tmp_path: Path) -> None:
    """They ended with a traceback."""
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.ones(16, 24, dtype=torch.bool)}, path)
    with chdir(TESTS):
        options = ("--data", path, "--no-report", "-o", tmp_path / "out")
        answer = lrcompress("profile", "small_network:build", *options)
    assert answer.code == 7
    assert "x bool (1, 24)" in answer.error


# ---- images


def test_an_image_bomb_is_refused(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = tmp_path / "images"
    folder.mkdir()
    model = load_model(str(folders["vit"]))
    path = folder / "a.png"
    Image.new("1", (10_000, 9_500)).save(path)  # 95 million pixels in 12 kB
    assert path.stat().st_size < 10**5
    with pytest.raises(DataError, match=r"a\.png: not a readable image"):
        load_batches(str(folder), model, DataOptions())
    Image.new("1", (1, 60_000)).save(path)
    with pytest.raises(DataError, match="1 x 60000"):
        load_batches(str(folder), model, DataOptions())


def test_one_image_at_a_time_is_the_same(folders: dict[str, Path], tmp_path: Path) -> None:
    import transformers

    model = load_model(str(folders["vit"]))
    generator = np.random.default_rng(0)
    for i in range(5):
        pixels = generator.integers(0, 256, (20 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    (batch,) = load_batches(str(tmp_path), model, DataOptions())
    processor = transformers.AutoImageProcessor.from_pretrained(folders["vit"], backend="pil")
    images = [Image.open(tmp_path / f"{i}.png").convert("RGB") for i in range(5)]
    together = processor(images=images, return_tensors="np")["pixel_values"]
    assert torch.equal(batch["pixel_values"], torch.from_numpy(together))


@pytest.mark.parametrize("size", [2**31, 10**6, {"height": 2**20, "width": 16}])
def test_an_image_processor_that_enlarges_without_end(
    size: object, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["vit"], tmp_path / "vit")
    name = next(p.name for p in folder.iterdir() if "processor_config" in p.name)
    tiny_models.edit_json(folder / name, size=size)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (20, 20)).save(tmp_path / "images" / "a.png")
    with pytest.raises(DataError, match="above 8192 pixels"):
        load_batches(str(tmp_path / "images"), load_model(str(folder)), DataOptions())


# ---- configurations


@pytest.mark.parametrize("number", [2**31, 10**6, 5000])
@pytest.mark.parametrize("kind", ["bert", "llama", "vit", "gpt2"])
def test_a_configuration_of_absurd_size_is_refused(
    kind: str, number: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    """Before anything is allocated or built; whichever number it is."""
    folder = shutil.copytree(folders[kind], tmp_path / kind)
    config = json.loads((folder / "config.json").read_text())
    for field in (
        *("num_hidden_layers", "n_layer", "hidden_size", "n_embd", "vocab_size"),
        *("intermediate_size", "max_position_embeddings", "n_positions", "image_size"),
    ):
        if field not in config or (kind, field) == ("llama", "max_position_embeddings"):
            continue
        (folder / "config.json").write_text(json.dumps({**config, field: number}))
        with pytest.raises(ModelError) as caught:
            load_model(str(folder))
        assert str(folder) in str(caught.value)


def test_labels_without_end(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = shutil.copytree(folders["vit"], tmp_path / "vit")
    tiny_models.edit_json(folder / "config.json", id2label=None, label2id=None, num_labels=2**31)
    with pytest.raises(ModelError, match="num_labels is 2147483648"):
        load_model(str(folder))


@pytest.mark.parametrize("layers", [0, 1, -1])
def test_layers_that_the_configuration_leaves_out_are_told(
    layers: int, folders: dict[str, Path], tmp_path: Path
) -> None:
    """They were dropped without a word."""
    folder = shutil.copytree(folders["bert"], tmp_path / "bert")
    tiny_models.edit_json(folder / "config.json", num_hidden_layers=layers)
    with pytest.raises(ModelError, match="has no place for encoder"):
        load_model(str(folder))


def test_a_head_that_is_left_out_is_warned_about(folders: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import load_file

    folder = shutil.copytree(folders["bert"], tmp_path / "bert")
    state = load_file(folder / "model.safetensors")
    save_file(
        {**state, "head.weight": torch.ones(3)}, folder / "model.safetensors", {"format": "pt"}
    )
    loaded = load_model(str(folder))
    assert any("head.weight" in warning for warning in loaded.warnings)


# ---- pipes, devices, folders, permissions, links


def pipe(path: Path) -> None:
    os.mkfifo(path)


def device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def dangling(path: Path) -> None:
    path.symlink_to("nothing/there")


def directory(path: Path) -> None:
    path.mkdir()


def loop(path: Path) -> None:
    path.symlink_to(path.name)


KINDS = (pipe, device, dangling, directory, loop)


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".npz", ".safetensors", ""])
def test_data_of_another_kind(
    make: Callable[[Path], None], suffix: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / f"data{suffix}"
    make(path)
    options = ("--data", path, "--no-report", "-o", tmp_path / "out")
    answer = lrcompress("profile", folders["bert"], *options)
    assert answer.code == 7
    assert path.name in answer.error
    if make in (pipe, device):
        assert "has no end" in answer.error


@pytest.mark.parametrize("make", KINDS)
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_model_file_of_another_kind(
    make: Callable[[Path], None], name: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = shutil.copytree(folders["bert"], tmp_path / "bert")
    (folder / name).unlink()
    make(folder / name)
    (tmp_path / "data.txt").write_text("the cat sat\n" * 8)
    options = ("--data", tmp_path / "data.txt", "--no-report", "-o", tmp_path / "out")
    answer = lrcompress("profile", folder, *options)
    assert answer.code == 7, answer.stderr
    assert str(folder) in answer.error


@pytest.mark.parametrize("make", KINDS)
def test_an_image_of_another_kind(
    make: Callable[[Path], None], folders: dict[str, Path], tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    make(tmp_path / "images" / "a.png")
    options = ("--data", tmp_path / "images", "--no-report", "-o", tmp_path / "out")
    answer = lrcompress("profile", folders["vit"], *options)
    assert answer.code == 7
    assert "a.png" in answer.error or make is directory


@pytest.mark.parametrize("option", ["--weights", "--latency-table", "--plan"])
def test_an_option_that_names_a_pipe(option: str, folders: dict[str, Path], tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    answer = lrcompress("compress", folders["bert"], option, tmp_path / "pipe", "--dry-run")
    assert answer.code == 2
    assert "has no end" in answer.error


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_data_that_may_not_be_read(folders: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "data.txt"
    path.write_text("the cat\n")
    path.chmod(stat.S_IWUSR)
    answer = lrcompress("profile", folders["bert"], "--data", path, "-o", tmp_path / "out")
    assert answer.code == 7
    assert "data.txt" in answer.error


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 TiB for an array"),
        RuntimeError("alloc_cpu.cpp:127: CPUAllocator: can't allocate memory"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    ],
)
def test_too_little_memory_is_no_bug(error: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_failure(error, [], resumable=False) == ExitCode.INPUT
    assert capsys.readouterr().err.startswith("error: not enough memory (")


# ---- safetensors


def header(value: object, content: bytes = b"", length: int | None = None) -> bytes:
    text = value if isinstance(value, bytes) else json.dumps(value).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + content


def tensor(dtype: str, shape: list[int], begin: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


SAFETENSORS = {
    "huge header": header(b"", length=2**63),
    "large header": header(b"{}" + b" " * 100, length=2**40),
    "no header": b"\0" * 4,
    "overlap": header({"a": tensor("F32", [2], 0, 8), "b": tensor("F32", [2], 4, 12)}, b"\0" * 12),
    "backwards": header({"a": tensor("F32", [2], 8, 0)}, b"\0" * 8),
    "beyond": header({"a": tensor("F32", [2], 0, 2**40)}, b"\0" * 8),
    "hole": header({"a": tensor("F32", [1], 4, 8)}, b"\0" * 8),
    "unknown dtype": header({"a": tensor("Q99", [2], 0, 8)}, b"\0" * 8),
    "shape overflow": header({"a": tensor("F32", [2**33, 2**33], 0, 8)}, b"\0" * 8),
    "negative shape": header({"a": tensor("F32", [-2], 0, 8)}, b"\0" * 8),
    "deep": header(b'{"a":' * 100_000),
    "list": header([]),
    "surrogate": header(b'{"\\ud800": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}'),
    "metadata": header({"__metadata__": {"a": 3}}),
    "complex": header({"input_ids": tensor("C64", [2, 1], 0, 16)}, b"\0" * 16),
    "float8": header({"input_ids": tensor("F8_E4M3", [2, 4], 0, 8)}, b"\0" * 8),
    "scalar": header({"input_ids": tensor("I64", [], 0, 8)}, b"\0" * 8),
}


@pytest.mark.parametrize("kind", SAFETENSORS)
def test_bad_safetensors_are_one_line(
    kind: str, folders: dict[str, Path], bert: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "data.safetensors"
    path.write_bytes(SAFETENSORS[kind])
    complaint(path, bert)
    folder = shutil.copytree(folders["bert"], tmp_path / "bert")
    (folder / "model.safetensors").write_bytes(SAFETENSORS[kind])
    with pytest.raises(ModelError) as caught:
        load_model(str(folder))
    assert str(folder) in str(caught.value)


def test_bad_tokenizers_are_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "data.txt").write_text("the cat sat\n" * 8)
    for i, content in enumerate(
        ["", "{}", "[]", "null", "[" * 100_000, "\ud800", '{"version": "1.0", "model": 3}']
    ):
        folder = shutil.copytree(folders["bert"], tmp_path / f"bert{i}")
        (folder / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogatepass"))
        with pytest.raises(DataError) as caught:
            load_data(str(tmp_path / "data.txt"), load_model(str(folder)), DataOptions())
        assert str(folder) in str(caught.value)
