"""Code that a folder brings or names runs only where the user says so; nothing is ever asked."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import chdir
from pathlib import Path

import pytest
import small_network
import tiny_models

import lrcompress as library
from adversarial.commands import TESTS, lrcompress
from lrcompress.errors import ModelError
from lrcompress.sources import factory

CODE = """
from pathlib import Path
Path({marker!r}).touch()
import transformers

class Config(transformers.BertConfig):
    model_type = "own"

class Model(transformers.BertModel):
    config_class = Config

class Tokenizer(transformers.PreTrainedTokenizerFast):
    pass

class Images(transformers.ViTImageProcessorPil):
    pass
"""
CONFIGURATIONS = (
    "config.json",
    "tokenizer_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)

COMPRESSING = ("--budget", "80%", "--no-report", "--rounds", "0", "--no-export")


@pytest.fixture
def marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file that exists once the folder's code has run. Nothing may ask on stdin."""
    cache = str(tmp_path / "cache")
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", cache)

    def asked(*_: object) -> str:
        raise AssertionError("asked on stdin")

    monkeypatch.setattr("builtins.input", asked)
    return tmp_path / "ran"


def folder_of(kind: str, tmp_path: Path, marker: Path) -> Path:
    folder = tmp_path / kind
    tiny_models.save(kind, folder)
    (folder / "own.py").write_text(CODE.format(marker=str(marker)))
    return folder


def edit(path: Path, **changes: object) -> None:
    value = json.loads(path.read_text()) if path.is_file() else {}
    value.update(changes)
    path.write_text(json.dumps(value))


def own_config(folder: Path) -> None:
    edit(folder / "config.json", model_type="own", auto_map={"AutoConfig": "own.Config"})


def own_model(folder: Path) -> None:
    edit(folder / "config.json", architectures=["Model"], auto_map={"AutoModel": "own.Model"})


def own_model_and_config(folder: Path) -> None:
    edit(
        folder / "config.json",
        model_type="own",
        architectures=["Model"],
        auto_map={"AutoConfig": "own.Config", "AutoModel": "own.Model"},
    )


def own_tokenizer(folder: Path) -> None:
    auto_map = {"AutoTokenizer": ["own.Tokenizer", "own.Tokenizer"]}
    edit(folder / "tokenizer_config.json", tokenizer_class="Tokenizer", auto_map=auto_map)


def own_tokenizer_of_unknown_type(folder: Path) -> None:
    own_tokenizer(folder)
    edit(folder / "config.json", model_type="nothing_known")


def own_images(folder: Path) -> None:
    auto_map = {"AutoImageProcessor": "own.Images"}
    edit(folder / "preprocessor_config.json", image_processor_type="Images", auto_map=auto_map)


def own_processor(folder: Path) -> None:
    edit(folder / "processor_config.json", auto_map={"AutoProcessor": "own.Processor"})
    own_images(folder)


def own_pipelines(folder: Path) -> None:
    pipelines = {"classify": {"impl": "own.Pipeline", "pt": ["AutoModel"], "type": "text"}}
    edit(folder / "config.json", custom_pipelines=pipelines)
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "own.py", folder / "custom_generate" / "generate.py")


def data_for(kind: str, tmp_path: Path) -> Path:
    if kind == "vit":
        from PIL import Image

        (tmp_path / "images").mkdir()
        for i in range(8):
            Image.new("RGB", (20, 20), (i, 2 * i, 90)).save(tmp_path / "images" / f"{i}.png")
        return tmp_path / "images"
    (tmp_path / "text.txt").write_text("the cat sat on a mat\na dog saw the far cat\n" * 8)
    return tmp_path / "text.txt"


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [
        ("bert", own_model_and_config),
        ("bert", own_tokenizer),
        ("bert", own_tokenizer_of_unknown_type),
        ("vit", own_images),
        ("vit", own_processor),
    ],
)
def test_code_of_the_folder_is_refused_without_the_flag(
    kind: str, spoil: Callable[[Path], None], tmp_path: Path, marker: Path
) -> None:
    folder = folder_of(kind, tmp_path, marker)
    spoil(folder)
    output = tmp_path / "out"
    options = ("--data", data_for(kind, tmp_path), "--no-report", "-o", output)
    answer = lrcompress("profile", folder, *options, answer="y\ny\ny\n")
    assert not marker.exists()
    assert answer.code == 7
    assert "--trust-remote-code" in answer.error
    assert str(folder) in answer.error
    assert not output.exists()


@pytest.mark.parametrize(
    ("kind", "spoil"), [("bert", own_config), ("bert", own_model), ("bert", own_pipelines)]
)
def test_code_that_nothing_needs_is_not_run(
    kind: str, spoil: Callable[[Path], None], tmp_path: Path, marker: Path
) -> None:
    """transformers knows the class itself, or nothing calls for the code."""
    folder = folder_of(kind, tmp_path, marker)
    spoil(folder)
    if spoil is own_model:
        edit(folder / "config.json", architectures=["BertModel"])
    data = ("--data", data_for(kind, tmp_path), *COMPRESSING)
    answer = lrcompress("compress", folder, *data, "-o", tmp_path / "out", answer="y\n")
    assert answer.code == 0, answer.stderr
    library.load(tmp_path / "out")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("kind", "spoil"),
    [("bert", own_model_and_config), ("bert", own_tokenizer), ("vit", own_images)],
)
def test_trusted_code_runs_and_goes_with_the_run(
    kind: str, spoil: Callable[[Path], None], tmp_path: Path, marker: Path
) -> None:
    folder = folder_of(kind, tmp_path, marker)
    spoil(folder)
    data = data_for(kind, tmp_path)
    given = ("--data", data, *COMPRESSING)
    run = tmp_path / "out"
    trusted = ("--trust-remote-code", "--accept-doubts")  # few images say little
    answer = lrcompress("compress", folder, *given, "-o", run, *trusted)
    assert answer.code == 0, answer.stderr
    assert marker.exists()
    assert (run / "own.py").is_file()
    marker.unlink()
    again = ("profile", run, "--data", data, "--no-report", "-o", tmp_path / "again")
    refused = lrcompress(*again, answer="y\n")
    assert (refused.code, marker.exists()) == (7, False)
    assert "--trust-remote-code" in refused.error
    assert lrcompress(*again, "--trust-remote-code").code == 0


# ---- factories


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    run = tmp_path_factory.mktemp("runs") / "finished"
    model, data = "small_network:build", "small_network:batches"
    with chdir(TESTS):
        answer = lrcompress(
            "compress", model, "--data", data, "--budget", "60%", "--rounds", "0", "-o", run
        )
        assert answer.code == 0, answer.stderr
        yield run


@pytest.fixture
def stranger(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a process that has named no factory."""
    monkeypatch.setattr(factory, "_named", set())


def hostile(finished: Path, tmp_path: Path, text: str, **reference: object) -> Path:
    run = shutil.copytree(finished, tmp_path / "run")
    record = json.loads((run / "lrcompress.json").read_text())
    record["reference"].update({"text": text, **reference})
    (run / "lrcompress.json").write_text(json.dumps(record))
    return run


def verbs(run: Path, tmp_path: Path) -> dict[str, tuple[str | Path, ...]]:
    """Every command that loads a run folder."""
    data = ("--data", "small_network:batches")
    output = ("--no-report", "-o", tmp_path / "out")
    return {
        "export": ("export", run, "-o", tmp_path / "again.onnx"),
        "verify": ("verify", run / "model.onnx"),
        "verify another": ("verify", run / "model.onnx", "--reference", run),
        "bench": ("bench", run, run / "model.onnx", "--batch", "1", "--runs", "1"),
        "tune": ("tune", run, *data, "--steps", "1", "--no-report"),
        "profile": ("profile", run, *data, *output),
        "compress": ("compress", run, *data, *COMPRESSING, *output),
    }


VERBS = tuple(verbs(Path(), Path()))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("stranger")
def test_a_factory_that_a_run_names_needs_consent(
    verb: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'imported')!r}).touch()\n"
        "def make(): raise SystemExit(0)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for text in ("planted:make", "os:abort", "http.server:test"):
        run = hostile(finished, tmp_path, text)
        before = {path: path.stat().st_mtime_ns for path in run.rglob("*")}
        answer = lrcompress(*verbs(run, tmp_path)[verb])
        assert answer.code == 7
        assert f"--trust-factory {text}" in answer.error
        assert not (tmp_path / "imported").exists(), "imported without consent"
        assert {path: path.stat().st_mtime_ns for path in run.rglob("*")} == before
        with pytest.raises(ModelError, match="trust_factory"):
            library.load(run)
        shutil.rmtree(run)


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.usefixtures("stranger")
def test_consent_by_name_is_enough(verb: str, finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    arguments = verbs(run, tmp_path)[verb]
    refused = lrcompress(*arguments, "--trust-factory", "small_network:batches")
    assert refused.code == 7, "another factory was trusted"
    answer = lrcompress(*arguments, "--trust-factory", "small_network:build")
    assert answer.code == 0, answer.stderr


@pytest.mark.usefixtures("stranger")
def test_the_source_named_on_the_command_line_is_consent(finished: Path, tmp_path: Path) -> None:
    run = shutil.copytree(finished, tmp_path / "run")
    tune = verbs(run, tmp_path)["tune"]
    assert lrcompress(*tune, "--no-export", "--reference", "small_network:build").code == 0


@pytest.mark.usefixtures("stranger")
def test_the_library_takes_the_name(finished: Path) -> None:
    with pytest.raises(ModelError):
        library.load(finished)
    assert library.load(finished, trust_factory="small_network:build") is not None


@pytest.mark.usefixtures("stranger")
def test_a_model_loaded_by_name_is_consent_for_its_runs(finished: Path) -> None:
    library.load_model("small_network:build")
    assert library.load(finished) is not None


@pytest.mark.parametrize("kind", ["huggingface", "run"])
@pytest.mark.usefixtures("stranger")
def test_no_other_kind_of_reference_calls_a_factory(
    kind: str, finished: Path, tmp_path: Path
) -> None:
    run = hostile(finished, tmp_path, "small_network:build", kind=kind)
    for verb in ("tune", "export"):
        answer = lrcompress(*verbs(run, tmp_path)[verb])
        assert answer.code == 7
        assert str(run) in answer.error


@pytest.mark.parametrize("text", ["../evil:make", "", "a b:c", "os:", "os.abort", "\x1b[2J:x"])
@pytest.mark.usefixtures("stranger")
def test_a_reference_that_is_none_is_told(text: str, finished: Path, tmp_path: Path) -> None:
    answer = lrcompress("export", hostile(finished, tmp_path, text), "-o", tmp_path / "a.onnx")
    assert answer.code == 7
    assert "not pkg.module:factory" in answer.error
    assert answer.error.isprintable()


def test_this_network_is_what_the_runs_were_made_from() -> None:
    assert sys.modules["small_network"] is small_network
