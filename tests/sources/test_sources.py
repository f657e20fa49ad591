"""Models and data: what is read is what was written, and what is not readable says so in a line."""

from __future__ import annotations

import json
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny_models import edit_json
from torch import Tensor, nn

from lrcompress.errors import DataError, LrcompressError, ModelError
from lrcompress.fingerprint import fingerprint_batches
from lrcompress.layers import describe
from lrcompress.sources.data import load_batches, load_data
from lrcompress.sources.example import example_batch
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.sources.models import load_model
from lrcompress.sources.options import BATCH_TOKENS, DataOptions
from lrcompress.sources.run_model import rebuild_empty

KINDS = tuple(tiny_models.MODELS)
# Two ways to add the same float32 numbers: a few units in the last place of activations near 1
ATOL = 64 * torch.finfo(torch.float32).eps


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    for kind in KINDS:
        tiny_models.save(kind, root / kind)
    return {kind: root / kind for kind in KINDS}


@pytest.fixture
def bert_folder(folders: dict[str, Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(folders["bert"], tmp_path / "bert"))


@pytest.fixture
def bert(folders: dict[str, Path]) -> LoadedModel:
    return load_model(str(folders["bert"]))


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory of one's own, whose modules are forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p])
    known = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - known:
        if name.startswith("mine"):
            del sys.modules[name]


def complaint(action: Callable[[], object], kind: type[LrcompressError] = ModelError) -> str:
    """The message of the error that `action` raises: one printable line with a next step."""
    with pytest.raises(kind) as caught:
        action()
    message = str(caught.value)
    assert message.isprintable(), repr(message)
    assert ";" in message, "no next step"
    return message


def outputs(module: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    with torch.inference_mode():
        return module(**batch)[0]


# --- Hugging Face folders


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_folder_computes_what_was_saved(kind: str, tmp_path: Path) -> None:
    saved = tiny_models.save(kind, tmp_path / kind)
    loaded = load_model(str(tmp_path / kind))
    batch = example_batch(loaded)
    torch.testing.assert_close(
        outputs(loaded.module, batch), outputs(saved, batch), rtol=0, atol=ATOL
    )
    assert type(loaded.module) is type(saved)
    assert not loaded.module.training
    assert not any(p.requires_grad for p in loaded.module.parameters())
    assert not getattr(loaded.module.config, "use_cache", False)


def test_shards_are_read_together(folders: dict[str, Path], tmp_path: Path) -> None:
    whole = load_model(str(folders["llama"]))
    whole.module.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    state = load_model(str(tmp_path)).module.state_dict()
    for name, tensor in whole.module.state_dict().items():
        assert torch.equal(state[name], tensor)


def test_half_precision_weights_are_loaded_as_float32(bert_folder: Path) -> None:
    path = bert_folder / "model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(path).items()}, path, {"format": "pt"})
    edit_json(bert_folder / "config.json", dtype="bfloat16")
    assert {p.dtype for p in load_model(str(bert_folder)).module.parameters()} == {torch.float32}


def test_nothing_is_fetched(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("a connection was attempted")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    text = bert_folder / "text.txt"
    text.write_text("the cat sat")
    load_batches(str(text), load_model(str(bert_folder)), DataOptions())


def test_companions_are_the_files_that_make_the_weights_usable(bert_folder: Path) -> None:
    (bert_folder / "1_Pooling").mkdir()
    (bert_folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_mean_tokens": true}')
    (bert_folder / "private-notes.txt").write_text("not for others")
    loaded = load_model(str(bert_folder))
    assert {str(p.relative_to(bert_folder)) for p in loaded.companions} == {
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        str(Path("1_Pooling/config.json")),
    }
    assert loaded.pooling == "mean"


@pytest.mark.parametrize(
    ("config", "mode"),
    [
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, None),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_max_tokens": True}, None),
    ],
)
def test_pooling_is_read_in_both_spellings(
    bert_folder: Path, config: dict[str, object], mode: str | None
) -> None:
    (bert_folder / "1_Pooling").mkdir()
    (bert_folder / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert load_model(str(bert_folder)).pooling == mode


def test_an_encoder_published_without_its_pooler_is_built_without_one(bert_folder: Path) -> None:
    path = bert_folder / "model.safetensors"
    kept = {name: t for name, t in load_file(path).items() if "pooler" not in name}
    save_file(kept, path, {"format": "pt"})
    loaded = load_model(str(bert_folder))
    assert loaded.module.pooler is None
    assert rebuild_empty(loaded.reference, bert_folder).pooler is None


@pytest.mark.parametrize("kind", KINDS)
def test_the_empty_module_has_the_same_tensors(kind: str, folders: dict[str, Path]) -> None:
    loaded = load_model(str(folders[kind]))
    before = torch.random.get_rng_state()
    empty = rebuild_empty(loaded.reference, folders[kind])
    assert torch.equal(torch.random.get_rng_state(), before)
    shapes = [(name, p.shape) for name, p in loaded.module.named_parameters()]
    assert [(name, p.shape) for name, p in empty.named_parameters()] == shapes
    assert describe(empty) == describe(loaded.module)


# --- folders that cannot be read


def test_damaged_safetensors_are_named(bert_folder: Path) -> None:
    path = bert_folder / "model.safetensors"
    whole = path.read_bytes()
    for bytes_left in (b"", whole[:4], whole[: len(whole) // 2], whole[:-1], b"\xff" * 100):
        path.write_bytes(bytes_left)
        assert "model.safetensors" in complaint(lambda: load_model(str(bert_folder)))


def test_a_missing_shard_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    load_model(str(folders["bert"])).module.save_pretrained(tmp_path, max_shard_size="20KB")
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.rename(tmp_path / "elsewhere")
    assert shard.name in complaint(lambda: load_model(str(tmp_path)))


def test_a_shard_that_lacks_its_tensors_is_named(folders: dict[str, Path], tmp_path: Path) -> None:
    load_model(str(folders["bert"])).module.save_pretrained(tmp_path, max_shard_size="20KB")
    first, second = sorted(tmp_path.glob("*.safetensors"))[:2]
    shutil.copyfile(first, second)
    assert second.name in complaint(lambda: load_model(str(tmp_path)))


@pytest.mark.parametrize("index", ["", "{}", '{"weight_map": [1]}', '{"weight_map": {"a": 3}}'])
def test_a_damaged_index_is_named(bert_folder: Path, index: str) -> None:
    (bert_folder / "model.safetensors").rename(bert_folder / "elsewhere")
    (bert_folder / "model.safetensors.index.json").write_text(index)
    assert "model.safetensors.index.json" in complaint(lambda: load_model(str(bert_folder)))


@pytest.mark.parametrize("config", ["", "[]", "{", '{"model_type": "no-such-model"}', "{}", "\x00"])
def test_a_damaged_config_is_one_line(bert_folder: Path, config: str) -> None:
    (bert_folder / "config.json").write_text(config)
    assert str(bert_folder) in complaint(lambda: load_model(str(bert_folder)))


def test_a_config_in_another_encoding_is_one_line(bert_folder: Path) -> None:
    (bert_folder / "config.json").write_bytes(b"\xff\xfe\x00")
    assert "config.json" in complaint(lambda: load_model(str(bert_folder)))


def test_weights_of_another_size_are_named(bert_folder: Path) -> None:
    edit_json(bert_folder / "config.json", intermediate_size=64)
    assert "intermediate" in complaint(lambda: load_model(str(bert_folder)))


def test_weights_that_are_not_there_are_named(bert_folder: Path) -> None:
    edit_json(bert_folder / "config.json", num_hidden_layers=3)
    assert "encoder.layer.2" in complaint(lambda: load_model(str(bert_folder)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_named(bert_folder: Path, value: float) -> None:
    path, name = bert_folder / "model.safetensors", "encoder.layer.1.output.dense.weight"
    state = load_file(path)
    state[name][3, 5] = value
    save_file(state, path, {"format": "pt"})
    assert name in complaint(lambda: load_model(str(bert_folder)))


def test_a_folder_without_weights_says_what_is_missing(bert_folder: Path) -> None:
    (bert_folder / "model.safetensors").unlink()
    assert "model.safetensors" in complaint(lambda: load_model(str(bert_folder)))


def test_quantised_weights_are_refused(bert_folder: Path) -> None:
    edit_json(bert_folder / "config.json", quantization_config={"quant_method": "gptq"})
    assert "quantised" in complaint(lambda: load_model(str(bert_folder)))


def test_a_hub_name_is_not_fetched(here: Path) -> None:
    message = complaint(lambda: load_model("some-people/some-model"))
    assert "hf download some-people/some-model" in message


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("model.onnx", "finished graph"),
        ("model.pt2", "finished graph"),
        ("model.safetensors", "pkg.module:factory"),
        ("model.pt", "pkg.module:factory"),
        ("model.csv", "is a file"),
    ],
)
def test_a_lone_file_says_what_to_give_instead(here: Path, name: str, said: str) -> None:
    (here / name).write_bytes(b"")
    assert said in complaint(lambda: load_model(name))


def test_folders_that_hold_no_model_say_so(tmp_path: Path) -> None:
    assert "config.json" in complaint(lambda: load_model(str(tmp_path)))
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "merge" in complaint(lambda: load_model(str(tmp_path)))
    (tmp_path / "adapter_config.json").rename(tmp_path / "plan.json")
    assert "unfinished" in complaint(lambda: load_model(str(tmp_path)))


@pytest.mark.parametrize("reference", ["", "no such folder", "../nowhere/at/all", "x" * 5000, "\0"])
def test_nonsense_references_are_one_line(here: Path, reference: str) -> None:
    if reference == "":  # the current directory, which holds nothing
        assert "config.json" in complaint(lambda: load_model(reference))
    else:
        with pytest.raises(ModelError):
            load_model(reference)


def test_permission_denied_is_one_line(bert_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def deny(self: Path, **_: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", deny)  # root would be let through
    assert "permission denied" in complaint(lambda: load_model(str(bert_folder)))


def test_without_transformers_the_extra_is_named(
    bert_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    message = complaint(lambda: load_model(str(bert_folder)))
    assert 'pip install "lrcompress[hf]"' in message


# --- formats and code that could harm


def test_torch_weights_load_as_data(bert_folder: Path, bert: LoadedModel) -> None:
    state = load_file(bert_folder / "model.safetensors")
    (bert_folder / "model.safetensors").unlink()
    torch.save(state, bert_folder / "pytorch_model.bin")
    loaded = load_model(str(bert_folder)).module.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in bert.module.state_dict().items())


def test_a_pickled_module_is_refused_unless_allowed(bert_folder: Path, bert: LoadedModel) -> None:
    (bert_folder / "model.safetensors").unlink()
    torch.save(bert.module, bert_folder / "pytorch_model.bin")
    message = complaint(lambda: load_model(str(bert_folder)))
    assert "runs code" in message
    assert "--allow-pickle" in message
    loaded = load_model(str(bert_folder), allow_pickle=True).module.state_dict()
    assert all(torch.equal(loaded[name], t) for name, t in bert.module.state_dict().items())


class _Harmful:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


def test_a_refused_pickle_has_run_nothing(bert_folder: Path, tmp_path: Path) -> None:
    (bert_folder / "model.safetensors").unlink()
    torch.save({"a": _Harmful(tmp_path / "ran")}, bert_folder / "pytorch_model.bin")
    assert "--allow-pickle" in complaint(lambda: load_model(str(bert_folder)))
    assert not (tmp_path / "ran").exists()


def test_damaged_torch_weights_are_not_taken_for_unsafe_ones(bert_folder: Path) -> None:
    (bert_folder / "model.safetensors").unlink()
    path = bert_folder / "pytorch_model.bin"
    torch.save({"a": torch.ones(3)}, path)
    whole = path.read_bytes()
    for bytes_left in (b"", b"not a pickle at all", whole[:3], whole[: len(whole) // 2]):
        path.write_bytes(bytes_left)
        message = complaint(lambda: load_model(str(bert_folder)))
        assert "pytorch_model.bin" in message
        assert "--allow-pickle" not in message


REMOTE_CODE = """
from pathlib import Path
from transformers import BertConfig, BertModel
Path({ran!r}).touch()
class OwnConfig(BertConfig):
    model_type = "own"
class OwnModel(BertModel):
    config_class = OwnConfig
"""


def test_code_in_the_folder_runs_only_when_trusted(
    bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ran = tmp_path / "ran"
    monkeypatch.setattr(
        "transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache")
    )
    (bert_folder / "own.py").write_text(REMOTE_CODE.format(ran=str(ran)))
    edit_json(
        bert_folder / "config.json",
        model_type="own",
        architectures=["OwnModel"],
        auto_map={"AutoConfig": "own.OwnConfig", "AutoModel": "own.OwnModel"},
    )
    assert "--trust-remote-code" in complaint(lambda: load_model(str(bert_folder)))
    assert not ran.exists()
    loaded = load_model(str(bert_folder), trust_remote_code=True)
    assert ran.exists()
    assert type(loaded.module).__name__ == "OwnModel"
    assert bert_folder / "own.py" in loaded.companions


# --- factories

FACTORY = """
import torch
from torch import nn

class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(11, 6)
        self.hidden = nn.Linear(6, 6)
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.table.weight
    def forward(self, ids):
        return self.head(self.hidden(self.table(ids)))

def build():
    return Tied()
build_lazy = lambda: nn.Sequential(nn.LazyLinear(3))
build_nothing = lambda: nn.ReLU()
built = Tied()
def needs(width):
    return nn.Linear(width, width)
def fails():
    raise RuntimeError("no luck\\nat all")
number = lambda: 3
batches = [{"ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}, {"ids": torch.tensor([[7, 8, 10]])}]
def generator():
    yield from batches
def bad_batches():
    yield [1, 2]
def failing_batches():
    yield batches[0]
    raise KeyError("column")
no_batches = lambda: []
class Masked(nn.Linear):
    def __init__(self):
        super().__init__(3, 3)
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
beyond = [{"ids": torch.tensor([[1, 2, 11]])}]
"""


@pytest.fixture
def mine(here: Path) -> Path:
    """`mine` is importable from the current directory; its own weights lie beside it."""
    (here / "mine.py").write_text(FACTORY)
    torch.manual_seed(1)
    state = {
        "table.weight": torch.randn(11, 6),
        "hidden.weight": torch.randn(6, 6),
        "hidden.bias": torch.randn(6),
    }
    save_file(state, here / "weights.safetensors")
    torch.save({"state_dict": state, "epoch": 3}, here / "weights.pt")
    return here


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_factory_takes_its_weights_and_keeps_its_ties(mine: Path, name: str) -> None:
    loaded = load_model("mine:build", weights=mine / name)
    state = load_file(mine / "weights.safetensors")
    assert torch.equal(loaded.module.table.weight, state["table.weight"])
    assert loaded.module.head.weight is loaded.module.table.weight
    assert loaded.reference.kind == "factory"


def test_a_factory_without_weights_draws_the_same_ones_each_time(mine: Path) -> None:
    first, second = (load_model("mine:build").module.state_dict() for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_infinities_of_an_attention_mask_are_no_fault(mine: Path) -> None:
    assert load_model("mine:Masked").module.mask.isinf().any()


def test_a_factory_without_weights_says_whose_they_are(
    mine: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (warning,) = load_model("mine:build").warnings
    assert warning in caplog.messages
    assert "the factory's own" in warning
    assert "--weights" in warning
    caplog.clear()
    assert not load_model("mine:build", weights=mine / "weights.safetensors").warnings
    assert not caplog.messages


def test_half_precision_weights_are_widened_to_the_factory_dtype(mine: Path) -> None:
    state = load_file(mine / "weights.safetensors")
    save_file({n: t.half() for n, t in state.items()}, mine / "half.safetensors")
    module = load_model("mine:build", weights=mine / "half.safetensors").module
    assert module.hidden.weight.dtype is torch.float32
    assert torch.equal(module.hidden.weight, state["hidden.weight"].half().float())


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("hidden.bias"), "hidden.bias"),
        (lambda s: s.update(extra=torch.ones(2)), "extra"),
        (lambda s: s.update({"hidden.weight": torch.ones(6, 5)}), "hidden.weight"),
        (lambda s: s.update({"hidden.weight": torch.ones(6, 6, dtype=torch.int64)}), "int64"),
        (lambda s: s.update({"head.weight": torch.ones(11, 6)}), "one weight"),
        (lambda s: s["hidden.bias"].fill_(float("nan")), "hidden.bias"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    mine: Path, change: Callable[[dict[str, Tensor]], object], said: str
) -> None:
    state = load_file(mine / "weights.safetensors")
    change(state)
    save_file(state, mine / "other.safetensors")
    message = complaint(lambda: load_model("mine:build", weights=mine / "other.safetensors"))
    assert said in message


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("mine:absent", "has no absent"),
        ("minefield:build", "no module named minefield"),
        ("mine.deeper:build", "no module named mine.deeper"),
        ("mine:built", "not a factory"),
        ("mine:batches", "not a factory"),
        ("mine:needs", "width"),
        ("mine:fails", "no luck"),
        ("mine:number", "returned a int"),
        ("mine:build_lazy", "no shape"),
        ("mine:build_nothing", "no weights"),
    ],
)
def test_factories_that_do_not_work_say_why(mine: Path, reference: str, said: str) -> None:
    assert said in complaint(lambda: load_model(reference))


@pytest.mark.parametrize(
    ("source", "said"),
    [
        ("import no_such_library", "no_such_library"),
        ("1 / 0", "ZeroDivisionError"),
        ("def (", "SyntaxError"),
        ("raise SystemExit(2)", "SystemExit"),
    ],
)
def test_modules_that_cannot_be_imported_say_why(here: Path, source: str, said: str) -> None:
    (here / "mine_broken.py").write_text(source)
    assert said in complaint(lambda: load_model("mine_broken:build"))


def test_the_weights_option_has_its_own_errors(mine: Path, bert_folder: Path) -> None:
    weights = mine / "weights.safetensors"
    assert "--weights" in complaint(lambda: load_model(str(bert_folder), weights=weights))
    assert "no such file" in complaint(lambda: load_model("mine:build", weights=mine / "no.pt"))
    assert "folder" in complaint(lambda: load_model("mine:build", weights=_folder(mine / "f.pt")))
    (mine / "w.csv").touch()
    assert ".safetensors" in complaint(lambda: load_model("mine:build", weights=mine / "w.csv"))
    torch.save(nn.Linear(2, 2), mine / "module.pt")
    assert "--allow-pickle" in complaint(
        lambda: load_model("mine:build", weights=mine / "module.pt")
    )
    torch.save({"epoch": 3}, mine / "empty.pt")
    assert "state_dict" in complaint(lambda: load_model("mine:build", weights=mine / "empty.pt"))


def _folder(path: Path) -> Path:
    path.mkdir()
    return path


# --- text

LINES = ("the cat sat", "a dog", "", "   ", "one dog saw the mat far away and sat", "run " * 60)


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("\n".join(LINES) + "\n")
    return path


def test_text_is_sorted_by_length_and_padded_where_the_mask_is_zero(
    bert: LoadedModel, text: Path
) -> None:
    batches = load_batches(str(text), bert, DataOptions(batch_size=2, max_length=12))
    assert [tuple(b["input_ids"].shape) for b in batches] == [(2, 5), (2, 12)]
    lengths = [int(n) for b in batches for n in b["attention_mask"].sum(1)]
    assert lengths == [4, 5, 11, 12]  # words, [CLS] and [SEP]; the last one is cut
    for batch in batches:
        assert set(batch) == {"input_ids", "attention_mask", "token_type_ids"}
        assert bool((batch["input_ids"][batch["attention_mask"] == 0] == 0).all())
        assert bool((batch["input_ids"][:, 0] == tiny_models.SPECIAL.index("[CLS]")).all())


def test_short_texts_go_many_at_a_time_and_long_ones_few(bert: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "mixed.txt"
    path.write_text("\n".join(["the cat"] * 300 + ["the cat sat " * 6] * 100))
    shapes = [tuple(b["input_ids"].shape) for b in load_batches(str(path), bert, DataOptions())]
    assert sum(rows for rows, _ in shapes) == 400
    assert all(rows * length <= BATCH_TOKENS for rows, length in shapes)
    assert shapes[0][0] > shapes[-2][0]  # the last one is what was left


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_decoder_without_padding_token_is_padded_with_eos(
    kind: str, folders: dict[str, Path], text: Path
) -> None:
    (batch,) = load_batches(str(text), load_model(str(folders[kind])), DataOptions(batch_size=9))
    assert set(batch) == {"input_ids", "attention_mask"}
    padded = batch["attention_mask"] == 0
    assert bool(padded.any())
    assert bool((batch["input_ids"][padded] == tiny_models.SPECIAL.index("[SEP]")).all())
    assert bool((padded.int().diff(dim=1) >= 0).all())  # on the right


def test_padding_leaves_the_rows_alone(folders: dict[str, Path], text: Path) -> None:
    model = load_model(str(folders["llama"]))
    (batch,) = load_batches(str(text), model, DataOptions(batch_size=9))
    whole = outputs(model.module, batch)
    for row, mask in enumerate(batch["attention_mask"]):
        length = int(mask.sum())
        alone = outputs(model.module, {"input_ids": batch["input_ids"][row : row + 1, :length]})
        torch.testing.assert_close(whole[row, :length], alone[0], rtol=0, atol=ATOL)


def test_text_is_cut_at_what_the_model_can_take(bert: LoadedModel, text: Path) -> None:
    batches = load_batches(str(text), bert, DataOptions(max_length=1000))
    assert batches[-1]["input_ids"].shape[1] == bert.module.config.max_position_embeddings


def test_text_is_the_same_at_every_call(bert: LoadedModel, text: Path) -> None:
    options = DataOptions(batch_size=2, max_examples=3)
    first, second = (load_batches(str(text), bert, options) for _ in range(2))
    assert fingerprint_batches(first) == fingerprint_batches(second)
    assert sum(len(batch["input_ids"]) for batch in first) == 3


def test_any_line_may_be_drawn(bert: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "many.txt"
    path.write_text("\n".join("the " * n for n in range(1, 31)))
    drawn = {
        int(n)
        for seed in range(40)
        for batch in load_batches(str(path), bert, DataOptions(max_examples=4, seed=seed))
        for n in batch["attention_mask"].sum(1)
    }
    # 160 draws of 30 lines leave a given one out with probability (26/30)^40 = 0.3 %
    assert len(drawn) >= 28


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "the cat"}',
        '{"id": 3, "body": "the cat"}',
        '"the cat"',
        '{"text": null, "x": "the cat"}',
    ],
)
def test_jsonl_takes_the_text_field_or_the_first_text(
    bert: LoadedModel, tmp_path: Path, line: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f"{line}\n\n{line}\n")
    (batch,) = load_batches(str(path), bert, DataOptions())
    assert batch["attention_mask"].sum(1).tolist() == [4, 4]


@pytest.mark.parametrize("line", ["{}", '{"n": 3}', "[1]", "7", "the cat", '{"a": "b', "[" * 9999])
def test_an_unknown_jsonl_layout_is_named_with_its_line(
    bert: LoadedModel, tmp_path: Path, line: str
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(f'{{"text": "the cat"}}\n{line}\n')
    message = complaint(lambda: load_batches(str(path), bert, DataOptions()), DataError)
    assert "data.jsonl:2:" in message


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"", "no text"), (b"\n \n\t\n", "no text"), (b"the cat\n\xff\xfe\x00", ":2:")],
)
def test_text_that_is_none_is_refused(
    bert: LoadedModel, tmp_path: Path, content: bytes, said: str
) -> None:
    path = tmp_path / "data.txt"
    path.write_bytes(content)
    assert said in complaint(lambda: load_batches(str(path), bert, DataOptions()), DataError)


def test_a_tokenizer_of_another_model_is_found_out(bert_folder: Path, text: Path) -> None:
    edit_json(bert_folder / "config.json", vocab_size=6)
    path = bert_folder / "model.safetensors"
    state = load_file(path)
    name = "embeddings.word_embeddings.weight"
    save_file({**state, name: state[name][:6].clone()}, path, {"format": "pt"})
    model = load_model(str(bert_folder))
    message = complaint(lambda: load_batches(str(text), model, DataOptions()), DataError)
    assert "vocabulary of 6" in message


def test_a_damaged_tokenizer_is_one_line(bert_folder: Path, text: Path) -> None:
    (bert_folder / "tokenizer.json").write_text("{}")
    model = load_model(str(bert_folder))
    assert "tokenizer" in complaint(
        lambda: load_batches(str(text), model, DataOptions()), DataError
    )


def test_text_needs_a_tokenizer(mine: Path, text: Path) -> None:
    model = load_model("mine:build")
    message = complaint(lambda: load_batches(str(text), model, DataOptions()), DataError)
    assert "pkg.module:batches" in message


@pytest.mark.parametrize("name", ["batch_size", "max_length", "max_examples"])
def test_sizes_below_one_are_refused(name: str) -> None:
    assert name in complaint(lambda: DataOptions(**{name: 0}), DataError)


@pytest.mark.parametrize("name", ["gone.txt", "table.csv"])
def test_other_data_references_say_what_is_accepted(
    bert: LoadedModel, here: Path, name: str
) -> None:
    (here / "table.csv").touch()
    assert ".jsonl" in complaint(lambda: load_batches(name, bert, DataOptions()), DataError)


# --- named arrays


def _ids(count: int, length: int = 6) -> np.ndarray:
    return np.arange(count * length).reshape(count, length) % tiny_models.VOCABULARY


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_named_arrays_are_cut_into_batches(bert: LoadedModel, tmp_path: Path, suffix: str) -> None:
    ids, mask = _ids(5).astype(np.int32), np.ones((5, 6), dtype=np.int64)
    path = tmp_path / f"data{suffix}"
    if suffix == ".npz":
        np.savez(path, input_ids=ids, attention_mask=mask)
    else:
        save_file(
            {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}, path
        )
    batches = load_batches(str(path), bert, DataOptions(batch_size=2))
    assert [len(batch["input_ids"]) for batch in batches] == [2, 2, 1]
    together = torch.cat([batch["input_ids"] for batch in batches])
    assert torch.equal(together, torch.from_numpy(ids).long())


def test_floating_arrays_take_the_dtype_of_the_model(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    path = tmp_path / "data.npz"
    pixels = np.random.default_rng(0).normal(size=(3, 3, 16, 16))  # float64
    np.savez(path, pixel_values=pixels.astype(">f8"))
    (batch,) = load_batches(str(path), load_model(str(folders["vit"])), DataOptions())
    assert torch.equal(batch["pixel_values"], torch.from_numpy(pixels).float())


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"ids": _ids(2)}, "input_ids"),
        ({}, "no arrays"),
        ({"input_ids": _ids(2), "attention_mask": np.ones((3, 6), int)}, "number of examples"),
        ({"input_ids": np.array([["a", "b"]])}, "not numbers"),
        ({"input_ids": np.array([[None, 3]], dtype=object)}, "numpy.savez"),
        ({"input_ids": np.array(3)}, "one example a row"),
        ({"input_ids": np.zeros((0, 4), int)}, "at least one"),
        ({"input_ids": np.full((1, 4), 999)}, "999"),
        ({"input_ids": np.full((1, 4), -1)}, "-1"),
        ({"input_ids": _ids(2).astype(float)}, "dtypes"),
        ({"input_ids": _ids(2).astype(complex)}, "numbers"),
        ({"inputs_embeds": np.full((1, 4, 32), np.nan)}, "NaN"),
        ({"inputs_embeds": np.ones((1, 4, 31))}, "shapes"),
        ({"input_ids": _ids(1, length=99)}, "shapes"),
    ],
)
def test_arrays_that_do_not_fit_are_refused(
    bert: LoadedModel, tmp_path: Path, arrays: dict[str, np.ndarray], said: str
) -> None:
    path = tmp_path / "data.npz"
    np.savez(path, **arrays)
    assert said in complaint(lambda: load_batches(str(path), bert, DataOptions()), DataError)


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_damaged_arrays_are_named(bert: LoadedModel, tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"data{suffix}"
    np.savez(tmp_path / "data.npz", input_ids=_ids(4))
    save_file({"input_ids": torch.from_numpy(_ids(4))}, tmp_path / "data.safetensors")
    whole = path.read_bytes()
    for bytes_left in (b"", b"PK", whole[: len(whole) // 2], whole[:-9]):
        path.write_bytes(bytes_left)
        message = complaint(lambda: load_batches(str(path), bert, DataOptions()), DataError)
        assert path.name in message


# --- batches made by code


@pytest.mark.parametrize("name", ["batches", "generator"])
def test_made_batches_are_taken_as_they_are(mine: Path, name: str) -> None:
    model = load_model("mine:build")
    batches = load_batches(f"mine:{name}", model, DataOptions(batch_size=1))
    assert [tuple(batch["ids"].shape) for batch in batches] == [(2, 3), (1, 3)]
    first = load_batches(f"mine:{name}", model, DataOptions(max_examples=1))
    assert [tuple(batch["ids"].shape) for batch in first] == [(1, 3)]


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("bad_batches", "dicts"),
        ("failing_batches", "KeyError"),
        ("no_batches", "no batches"),
        ("number", "list of dicts"),
        ("absent", "has no absent"),
        ("beyond", "ranges"),
    ],
)
def test_made_batches_that_do_not_work_say_why(mine: Path, name: str, said: str) -> None:
    model = load_model("mine:build")
    with pytest.raises(DataError) as caught:
        load_batches(f"mine:{name}", model, DataOptions())
    assert said in str(caught.value)
    assert str(caught.value).isprintable()


# --- images


def _image(path: Path, shade: int, mode: str = "RGB") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (20, 12), shade).convert(mode).save(path)


def test_an_image_folder_goes_through_the_models_processor(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    for i, name in enumerate(("b/2.png", "a/1.jpg", "a/deep/0.PNG", "c.bmp")):
        _image(tmp_path / name, 40 * i, "L" if i == 0 else "RGB")
    (tmp_path / "labels.csv").touch()
    model = load_model(str(folders["vit"]))
    batches = load_batches(str(tmp_path), model, DataOptions(batch_size=3))
    assert [tuple(b["pixel_values"].shape) for b in batches] == [(3, 3, 16, 16), (1, 3, 16, 16)]
    # ViT's processor maps 0..255 to -1..1; in the order of paths: a/1, a/deep/0, b/2, c
    shades = torch.cat([b["pixel_values"] for b in batches]).mean((1, 2, 3))
    expected = torch.tensor([40, 80, 0, 120]) / 127.5 - 1
    torch.testing.assert_close(shades, expected, rtol=0, atol=2 / 127.5)  # JPEG rounds
    assert "torchvision" not in sys.modules


def test_images_that_cannot_be_read_are_named(folders: dict[str, Path], tmp_path: Path) -> None:
    model = load_model(str(folders["vit"]))

    def load() -> object:
        return load_batches(str(tmp_path), model, DataOptions())

    assert "no images" in complaint(load, DataError)
    _image(tmp_path / "good.png", 3)
    whole = (tmp_path / "good.png").read_bytes()
    for bytes_left in (b"", b"hello", whole[: len(whole) // 2]):
        (tmp_path / "bad.png").write_bytes(bytes_left)
        assert "bad.png" in complaint(load, DataError)


def test_images_need_a_processor(bert: LoadedModel, tmp_path: Path) -> None:
    _image(tmp_path / "one.png", 3)
    message = complaint(lambda: load_batches(str(tmp_path), bert, DataOptions()), DataError)
    assert ".npz" in message


# --- without data


@pytest.mark.parametrize("kind", KINDS)
def test_the_example_has_the_inputs_that_real_data_has(
    kind: str, folders: dict[str, Path], text: Path, tmp_path: Path
) -> None:
    model = load_model(str(folders[kind]))
    if kind == "vit":
        _image(tmp_path / "images" / "one.png", 3)
        text = tmp_path / "images"
    (real,) = load_batches(str(text), model, DataOptions())
    example = example_batch(model)
    assert {n: (t.dtype, t.dim()) for n, t in example.items()} == {
        n: (t.dtype, t.dim()) for n, t in real.items()
    }
    assert fingerprint_batches([example]) == fingerprint_batches([example_batch(model)])


def test_a_factory_has_no_example(mine: Path) -> None:
    assert "--data" in complaint(lambda: example_batch(load_model("mine:build")), DataError)


def test_the_fingerprint_sees_names_shapes_and_values() -> None:
    base = {"x": torch.arange(6).reshape(2, 3)}
    others = [{"y": base["x"]}, {"x": base["x"].reshape(3, 2)}, {"x": base["x"] + 1}]
    prints = {fingerprint_batches([batch]) for batch in (base, *others)}
    assert len(prints) == 4
    assert fingerprint_batches([base]) == fingerprint_batches([{"x": base["x"].clone()}])


# --- text that the tokenizer does not know


def test_text_of_unknown_words_is_warned_about_with_a_line(
    bert: LoadedModel, tmp_path: Path
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("the cat sat on a mat\nder Hund lief weit\nthe dog saw one Katze\n")
    data = load_data(str(path), bert, DataOptions())
    (warning,) = data.warnings
    assert "28 % of its tokens are unknown" in warning  # 5 of 18: [CLS] counts, it is not declared
    assert "4 of 5" in warning
    assert "der Hund lief weit" in warning


def test_text_of_known_words_is_not_warned_about(bert: LoadedModel, tmp_path: Path) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("the cat sat on a mat\n" * 4 + "the dog saw one Katze\n")
    assert load_data(str(path), bert, DataOptions()).warnings == ()


def test_a_warning_about_the_text_reaches_the_report(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    from lrcompress.pipeline import FolderOptions, SourceOptions, run_profile
    from lrcompress_cli.json_output import profile_record

    path = tmp_path / "texts.txt"
    path.write_text("der Hund lief weit\nthe dog saw one Katze\n")
    source = SourceOptions(str(folders["bert"]), data=str(path))
    result = run_profile(source, FolderOptions(tmp_path / "out", report=False))
    assert any("unknown to the tokenizer" in w for w in result.report.warnings)
    assert any("unknown to the tokenizer" in w for w in profile_record(result)["warnings"])
