"""Names inside files lead nowhere else, and files say nothing of where they were made."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path

import onnx
import pytest
import tiny_models
import torch
from onnx import TensorProto, helper

from adversarial.commands import lrcompress
from lrcompress.errors import ModelError
from lrcompress.export.pt2 import save_pt2
from lrcompress.sources.models import load_model

SHARD = "model-00001-of-00001.safetensors"


@pytest.fixture
def sharded(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    tiny_models.save("bert", folder)
    whole = folder / "model.safetensors"
    names = list(load_model(str(folder)).module.state_dict())
    whole.rename(folder / SHARD)
    index = {"metadata": {}, "weight_map": dict.fromkeys(names, SHARD)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def point_to(folder: Path, name: str) -> None:
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    index["weight_map"] = dict.fromkeys(index["weight_map"], name)
    path.write_text(json.dumps(index))


@pytest.mark.parametrize(
    "name",
    [
        f"../outside/{SHARD}",
        f"sub/../../outside/{SHARD}",
        f"..\\outside\\{SHARD}",
        "absolute",
        "C:\\weights.safetensors",
        "\\\\server\\weights.safetensors",
        "",
        ".",
        "..",
        "a\0b",
        "a\x1b[2Jb",
        "\ud800",
    ],
)
def test_a_shard_outside_the_folder_is_refused(name: str, sharded: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    shutil.copy(sharded / SHARD, tmp_path / "outside" / SHARD)
    point_to(sharded, str(tmp_path / "outside" / SHARD) if name == "absolute" else name)
    answer = lrcompress("profile", sharded, "--no-report", "-o", tmp_path / "out")
    assert answer.code == 7
    assert "not in its folder" in answer.error
    assert "index.json" in answer.error
    assert answer.error.isprintable()


def test_links_of_a_hub_cache_work(sharded: Path, tmp_path: Path) -> None:
    blob = tmp_path / "blobs" / "0f3a"
    blob.parent.mkdir()
    shutil.move(sharded / SHARD, blob)
    (sharded / SHARD).symlink_to(os.path.relpath(blob, sharded))
    assert load_model(str(sharded)).module is not None


def test_a_dangling_link_is_a_missing_shard(sharded: Path) -> None:
    (sharded / SHARD).unlink()
    (sharded / SHARD).symlink_to("../blobs/none")
    with pytest.raises(ModelError, match="shard is missing"):
        load_model(str(sharded))


@pytest.mark.parametrize(
    "location", ["../secret.bin", "a/../../secret.bin", "absolute", "link.bin"]
)
@pytest.mark.parametrize("command", ["verify", "bench"])
def test_external_data_outside_the_folder_is_refused(
    location: str, command: str, tmp_path: Path
) -> None:
    folder = tmp_path / "graph"
    folder.mkdir()
    (tmp_path / "secret.bin").write_bytes(bytes(64 * 64 * 4))
    (folder / "link.bin").symlink_to("../secret.bin")
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[64, 64])
    weight.data_location = TensorProto.EXTERNAL
    where = str(tmp_path / "secret.bin") if location == "absolute" else location
    weight.external_data.add(key="location", value=where)
    weight.external_data.add(key="length", value=str(64 * 64 * 4))
    ports = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["b", 64]) for n in "xy"]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ports[:1], ports[1:], [weight]
    )
    path = folder / "model.onnx"
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)
    arguments = ("verify", path) if command == "verify" else ("bench", path, path, "--runs", "1")
    answer = lrcompress(*arguments)
    assert answer.code in (3, 7), answer.stdout
    assert answer.stderr.startswith("error: ")


NETWORK = """
from torch import nn
class Network(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    def forward(self, x):
        return self.layers(x)
make = Network
"""


def test_a_program_does_not_depend_on_where_its_code_lies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = []
    for place in ("one", "another/place"):
        folder = tmp_path / place
        folder.mkdir(parents=True)
        (folder / "network.py").write_text(NETWORK)
        spec = importlib.util.spec_from_file_location("network", folder / "network.py")
        assert spec is not None
        assert spec.loader is not None
        code = importlib.util.module_from_spec(spec)
        monkeypatch.setitem(sys.modules, "network", code)
        spec.loader.exec_module(code)
        torch.manual_seed(0)
        save_pt2(code.make().eval(), {"x": torch.ones(2, 8)}, folder / "model.pt2")
        written.append((folder / "model.pt2").read_bytes())
        assert b".py" not in written[-1]
        assert str(tmp_path).encode() not in written[-1]
        program = torch.export.load(folder / "model.pt2").module()
        assert program(x=torch.ones(5, 8)).shape == (5, 3)
    assert written[0] == written[1]
