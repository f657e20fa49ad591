"""Hugging Face folders as people keep them: halved, sharded, of several dtypes; with text."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import MODELS, WORDS, edit_json, save_tokenizer
from torch import nn

from adversarial.checkpoint_runs import check_run, mixed, prefixed
from adversarial.situations.checks import apart, outputs_of
from adversarial.situations.situation import low_rank_
from lrcompress.errors import LrcompressError, ModelError
from lrcompress.network.batches import Batch
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run
from lrcompress.planning.budget import Budget
from lrcompress.sources.models import load_model

TEXTS = 80


def folder_of(
    kind: str, folder: Path, dtype: torch.dtype = torch.float32, **save: Any
) -> nn.Module:
    """The model that a folder of low rank was saved from, rounded as the folder is, in float32."""
    torch.manual_seed(0)
    model: Any = low_rank_(MODELS[kind]())
    model.tie_weights()
    model.to(dtype).save_pretrained(folder, **save)
    save_tokenizer(folder, pad=kind == "bert", encoder=kind == "bert")
    return model.float().eval()  # type: ignore[no-any-return]


def text_file(folder: Path) -> Path:
    generator = torch.Generator().manual_seed(3)
    lines = []
    for _ in range(TEXTS):
        picks = torch.randint(len(WORDS), (int(torch.randint(2, 20, (1,), generator=generator)),),
                              generator=generator)  # fmt: skip
        lines.append(" ".join(WORDS[i] for i in picks.tolist()))
    path = folder / "text.txt"
    path.write_text("\n".join(lines))
    return path


def some_ids() -> Batch:
    generator = torch.Generator().manual_seed(9)
    ids = torch.randint(4, 17, (6, 11), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def to_bin(folder: Path) -> None:
    """The folder's shards as torch's own files."""
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    renamed = {}
    for file in sorted(set(index["weight_map"].values())):
        state = load_file(folder / file)
        renamed[file] = file.replace("model", "pytorch_model").replace("safetensors", "bin")
        torch.save(state, folder / renamed[file])
        (folder / file).unlink()
    index["weight_map"] = {name: renamed[file] for name, file in index["weight_map"].items()}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    (folder / "model.safetensors.index.json").unlink()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "dtype", "form", "tolerance"),
    [
        ("bert", torch.float16, "one file", 1e-2),
        ("llama", torch.bfloat16, "one file", 1e-1),
        ("gpt2", torch.float32, "shards", 2e-3),
        ("llama", torch.float32, "torch's shards", 2e-3),
        ("bert", torch.bfloat16, "torch's shards", 1e-1),
    ],
)
def test_a_folder_runs_in_float32_from_text(
    kind: str, dtype: torch.dtype, form: str, tolerance: float, tmp_path: Path
) -> None:
    folder = tmp_path / "dense"
    dense: Any = folder_of(
        kind, folder, dtype, **({"max_shard_size": "10KB"} if "shards" in form else {})
    )
    if form.startswith("torch"):
        to_bin(folder)
    dense.config.use_cache = False
    source = SourceOptions(str(folder), data=str(text_file(tmp_path)))
    left = {"linear": "the measured output does not depend on it"} if kind == "bert" else {}
    layers = {"bert": 15, "llama": 15, "gpt2": 10}[kind]
    given = some_ids()
    if kind == "bert":
        given["token_type_ids"] = torch.zeros_like(given["input_ids"])
    check_run(source, dense, given, tmp_path / "run", layers, left, tolerance, tolerance / 5)


def test_wrapped_names_in_a_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    folder_of("bert", folder)
    path = folder / "model.safetensors"
    save_file(prefixed("module.")(load_file(path)), path, metadata={"format": "pt"})
    source = SourceOptions(str(folder), data=str(text_file(tmp_path)))
    with pytest.raises(ModelError, match="the weights lack"):
        run(RunOptions(source, FolderOptions(tmp_path / "run"), Budget.parse("60%")))


def test_several_dtypes_in_a_folder_become_one(tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    dense = folder_of("gpt2", folder)
    path = folder / "model.safetensors"
    save_file(mixed(load_file(path)), path, metadata={"format": "pt"})
    loaded = load_model(str(folder)).module
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert apart(outputs_of(loaded, some_ids()), outputs_of(dense, some_ids())) <= 1e-1


def test_a_config_in_half_precision_is_loaded_in_float32(tmp_path: Path) -> None:
    folder = tmp_path / "dense"
    folder_of("llama", folder, torch.bfloat16)
    edit_json(folder / "config.json", dtype="bfloat16")
    loaded = load_model(str(folder)).module
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert {b.dtype for b in loaded.buffers() if b.is_floating_point()} == {torch.float32}


def test_an_encoder_decoder_without_decoder_ids_is_refused(tmp_path: Path) -> None:
    from adversarial.situations.folders import ARCHITECTURES

    row = replace(ARCHITECTURES["t5"], options={**ARCHITECTURES["t5"].options, "vocab_size": 17})
    row.save(tmp_path / "dense")
    save_tokenizer(tmp_path / "dense", pad=True, encoder=False)
    source = SourceOptions(str(tmp_path / "dense"), data=str(text_file(tmp_path)))
    with pytest.raises(LrcompressError, match="input_ids or inputs_embeds"):
        run(RunOptions(source, FolderOptions(tmp_path / "run"), Budget.parse("60%")))
    assert not (tmp_path / "run").exists()
