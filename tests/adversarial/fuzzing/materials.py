"""Small whole inputs of every kind, made once, of which one file at a time is damaged."""

from __future__ import annotations

import io
import json
import shutil
from contextlib import chdir
from pathlib import Path

import numpy as np
import onnx
import small_network
import tiny_models
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from adversarial.commands import TESTS, lrcompress
from lrcompress.planning.latency import LatencyTable, Measurement, table_to_json

FACTORY, BATCHES = "small_network:build", "small_network:batches"
WORDS = "the cat sat on a mat\na dog saw the far cat\none dog sat\nthe mat and the dog\n"


def make(root: Path) -> None:
    """Everything that formats.py damages, under `root`."""
    for kind in ("bert", "llama", "vit"):
        tiny_models.save(kind, root / kind)
    _sharded(root / "bert", root / "sharded")
    _pickled(root / "bert", root / "pickled")
    data = root / "data"
    data.mkdir()
    (data / "text.txt").write_text(WORDS * 4)
    records = (json.dumps({"text": line, "n": 3}) for line in (WORDS * 4).splitlines())
    (data / "records.jsonl").write_text("\n".join(records))
    ids = np.random.default_rng(0).integers(0, tiny_models.VOCABULARY, (8, 6))
    np.savez(data / "ids.npz", input_ids=ids, attention_mask=np.ones_like(ids))
    save_file({"x": torch.randn(16, small_network.WIDTH)}, data / "x.safetensors")
    np.savez(data / "x.npz", x=np.random.default_rng(1).normal(size=(16, 24)).astype(np.float32))
    save_file(small_network.build().state_dict(), data / "weights.safetensors")
    for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm"):
        content = io.BytesIO()
        pixels = np.random.default_rng(2).integers(0, 256, (18, 20, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(content, kind)
        (data / f"image.{kind}").write_bytes(content.getvalue())
    _run(root)


def _run(root: Path) -> None:
    run = root / "run"
    given = ("--data", BATCHES, "--budget", "60%", "--rounds", "0", "--no-report")
    with chdir(TESTS):
        answer = lrcompress("compress", FACTORY, *given, "-o", run)
        assert answer.code == 0, answer.stderr
    (root / "data" / "table.json").write_text(_table())
    external = root / "external" / "model.onnx"
    external.parent.mkdir()
    graph = onnx.load(run / "model.onnx")
    apart = {"location": "model.onnx.data", "size_threshold": 0}
    onnx.save(graph, external, save_as_external_data=True, **apart)


def _table() -> str:
    """Of the sizes of the small network, as calibrate-latency writes it."""
    measured = tuple(
        Measurement("cpu", "low-rank", 0, "", *size, kept, 16, 0.3 + kept)
        for size in ((24, 40), (40, 24))
        for kept in (0.25, 0.5, 0.75)
    )
    return table_to_json(LatencyTable(measured), {"processor": "any"})


def _sharded(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    state = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    names = sorted(state)
    parts = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in parts.items():
        save_file({name: state[name] for name in part}, target / file, {"format": "pt"})
    index = {"metadata": {}, "weight_map": {n: f for f, part in parts.items() for n in part}}
    (target / "model.safetensors.index.json").write_text(json.dumps(index))


def _pickled(source: Path, target: Path) -> None:
    shutil.copytree(source, target)
    state = load_file(target / "model.safetensors")
    (target / "model.safetensors").unlink()
    torch.save(state, target / "pytorch_model.bin")
