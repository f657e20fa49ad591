"""What is damaged, how, and the command that reads it."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

from adversarial.fuzzing import mutators
from adversarial.fuzzing.materials import BATCHES, FACTORY
from adversarial.fuzzing.mutators import Mutator, budget_text

Arguments = list[str | Path]
QUIET = ("--no-report",)
TRUST = ("--trust-factory", FACTORY)


@dataclass(frozen=True)
class Format:
    """A file of the materials and the command that is given it.

    links: the folder around it is made of links; otherwise of copies, where the command writes.
    """

    file: str
    mutate: Mutator
    command: Callable[[Path, Path], Arguments]  # of the folder around the file, and the materials
    links: bool = True

    def prepare(self, rng: Random, materials: Path, scratch: Path) -> tuple[Arguments, str]:
        """The damaged file in a folder of its own: the command, and the file's name."""
        source = materials / self.file
        top = scratch / Path(self.file).parts[0]
        if self.links:
            _linked(materials / top.name, top)
        else:
            shutil.copytree(materials / top.name, top)
        target = scratch / self.file
        target.unlink()
        target.write_bytes(self.mutate(rng, source.read_bytes()))
        return self.command(top, materials), target.name


@dataclass(frozen=True)
class Options:
    """Options that take a text."""

    command: Callable[[str, Path], Arguments]

    def prepare(self, rng: Random, materials: Path, scratch: Path) -> tuple[Arguments, str]:
        text = budget_text(rng).replace("\0", "").replace("\ud800", "")
        text = text.replace("os:abort", "os")  # whoever names it as a model has asked for it
        return self.command(text, materials), ""


def _linked(source: Path, target: Path) -> None:
    target.mkdir()
    for entry in os.scandir(source):
        if entry.is_dir():
            _linked(Path(entry.path), target / entry.name)
        else:
            (target / entry.name).symlink_to(entry.path)


def _load(model: Path, materials: Path) -> Arguments:
    """Little more than loading it."""
    return ["profile", model, "--metric", "plain", *QUIET, "-o", model.parent / "out"]


def _texts(model: Path, materials: Path) -> Arguments:
    return [*_load(model, materials), "--data", materials / "data" / "text.txt"]


def _images(model: Path, materials: Path) -> Arguments:
    images = model.parent / "images"
    images.mkdir()
    shutil.copy(materials / "data" / "image.png", images)
    return [*_load(model, materials), "--data", images]


def _data(name: str, model: str) -> Callable[[Path, Path], Arguments]:
    def command(folder: Path, materials: Path) -> Arguments:
        path = materials / model if (materials / model).is_dir() else model
        output = folder.parent / "out"
        given = ("--metric", "plain", *QUIET, "-o", output)
        return ["profile", path, "--data", folder / name, *given]

    return command


def _image(name: str) -> Callable[[Path, Path], Arguments]:
    def command(folder: Path, materials: Path) -> Arguments:
        images = folder.parent / "images"
        images.mkdir()
        shutil.copy(folder / name, images / name)
        given = ("--metric", "plain", *QUIET, "-o", folder.parent / "out")
        return ["profile", materials / "vit", "--data", images, *given]

    return command


def _plan(run: Path, materials: Path) -> Arguments:
    return ["plan", run, "--budget", "60%"]


def _follow(run: Path, materials: Path) -> Arguments:
    given = ("--plan", run / "plan.json", "--profile", materials / "run" / "profile")
    return ["compress", FACTORY, "--data", BATCHES, *given, "--dry-run"]


def _handed_in(run: Path, materials: Path) -> Arguments:
    given = ("--profile", run / "profile", "--plan", materials / "run" / "plan.json")
    return ["compress", FACTORY, "--data", BATCHES, *given, *QUIET, "-o", run.parent / "out"]


def _resume(run: Path, materials: Path) -> Arguments:
    given = ("--budget", "60%", "--rounds", "0", *QUIET, "-o", run)
    return ["compress", FACTORY, "--data", BATCHES, *given]


def _run_as_model(run: Path, materials: Path) -> Arguments:
    return [*_load(run, materials), *TRUST]


def _verify(folder: Path, materials: Path) -> Arguments:
    return ["verify", folder / "model.onnx"]


def _verify_run(folder: Path, materials: Path) -> Arguments:
    return ["verify", folder / "model.onnx", *TRUST]


def _bench(folder: Path, materials: Path) -> Arguments:
    graph = folder / "model.onnx"
    return ["bench", graph, graph, "--batch", "1", "--runs", "1", "--length", "3"]


def _table(folder: Path, materials: Path) -> Arguments:
    given = ("--budget", "latency=80%", "--latency-table", folder / "table.json", "--rows", "16")
    return ["plan", materials / "run", *given]


def _weights(folder: Path, materials: Path) -> Arguments:
    given = ("--weights", folder / "weights.safetensors", "--metric", "plain", *QUIET)
    return ["profile", FACTORY, *given, "-o", folder.parent / "out"]


def _planned(*options: str) -> Options:
    return Options(lambda text, materials: ["plan", materials / "run", *options, text])


JSON, TENSORS, BYTES = mutators.as_json, mutators.as_safetensors, mutators.as_bytes

SLOW = ("profile.json handed in", "moments", "stages.json")  # whole runs: every tenth turn

FORMATS: dict[str, Format | Options] = {
    "config.json": Format("bert/config.json", JSON, _load),
    "config.json of a decoder": Format("llama/config.json", JSON, _load),
    "config.json of images": Format("vit/config.json", JSON, _images),
    "model.safetensors": Format("bert/model.safetensors", TENSORS, _load),
    "index": Format("sharded/model.safetensors.index.json", JSON, _load),
    "shard": Format("sharded/a.safetensors", TENSORS, _load),
    "pytorch_model.bin": Format("pickled/pytorch_model.bin", mutators.as_state, _load),
    "tokenizer.json": Format("bert/tokenizer.json", JSON, _texts),
    "tokenizer_config.json": Format("bert/tokenizer_config.json", JSON, _texts),
    "image processor": Format("vit/preprocessor_config.json", JSON, _images),
    "factory weights": Format("data/weights.safetensors", TENSORS, _weights),
    ".txt": Format("data/text.txt", mutators.as_text, _data("text.txt", "bert")),
    ".jsonl": Format("data/records.jsonl", mutators.as_text, _data("records.jsonl", "bert")),
    ".npz of ids": Format("data/ids.npz", mutators.as_npz, _data("ids.npz", "bert")),
    ".npz of numbers": Format("data/x.npz", mutators.as_npz, _data("x.npz", FACTORY)),
    "data .safetensors": Format("data/x.safetensors", TENSORS, _data("x.safetensors", FACTORY)),
    **{
        f"image .{kind}": Format(f"data/image.{kind}", BYTES, _image(f"image.{kind}"))
        for kind in ("png", "jpeg", "gif", "bmp", "tiff", "webp", "ppm")
    },
    "profile.json": Format("run/profile/profile.json", JSON, _plan),
    "profile.json handed in": Format("run/profile/profile.json", JSON, _handed_in),
    "spectra": Format("run/profile/spectra.safetensors", TENSORS, _plan),
    "moments": Format("run/profile/moments-00000.safetensors", TENSORS, _handed_in),
    "plan.json": Format("run/plan.json", JSON, _follow),
    "plan.json of a run": Format("run/plan.json", JSON, _verify_run),
    "stages.json": Format("run/stages.json", JSON, _resume, links=False),
    "lrcompress.json": Format("run/lrcompress.json", JSON, _run_as_model),
    "weights of a run": Format("run/model.safetensors", TENSORS, _run_as_model),
    "model.onnx": Format("run/model.onnx", mutators.as_graph, _verify_run),
    "external graph": Format("external/model.onnx", mutators.as_graph, _verify, links=False),
    "external data": Format("external/model.onnx.data", BYTES, _verify, links=False),
    "model.onnx timed": Format("run/model.onnx", mutators.as_graph, _bench),
    "latency table": Format("data/table.json", JSON, _table),
    "--budget": _planned("--budget"),
    "--include": _planned("--budget", "60%", "--include"),
    "--structures": _planned("--budget", "60%", "--structures"),
    "--multiple-of": _planned("--budget", "60%", "--multiple-of"),
    "--rows": _planned("--budget", "60%", "--rows"),
    "MODEL": Options(lambda text, materials: ["profile", text, *QUIET]),
    "--data": Options(
        lambda text, materials: ["profile", materials / "bert", "--data", text, *QUIET]
    ),
}
