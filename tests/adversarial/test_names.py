"""Names of layers that are long, or that no terminal shows: whole in every file, or refused before
any work."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from small_network import WIDTH, batches  # noqa: F401
from torch import Tensor, nn

import lrcompress
from lrcompress.errors import ModelError
from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run, run_profile
from lrcompress.planning.budget import Budget

TESTS = Path(__file__).parents[1]
pytestmark = pytest.mark.usefixtures("in_tests_folder")  # where the factories are found
NAMES = {
    "long": "a" * 150,
    "longer_by_its_end": "b" * 200,
    "colour": "\x1b[31mred",
    "tab": "a\tb",
    "invisible": "\u200b\u202e",
    "letters": "ä" * 200,
    "slash": "a/b",
    "page": "<script>alert(1)</script>",
    "line": "two\nlines",
    "quote": 'a"b',
    "backslash": "a\\tb",
}
EXPORTED = ("letters", "line")  # in the fast tests too
REFUSED = {
    "half": "a\udc80b",
    "null": "a\0b",
}


class Named(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.names = [name, f"{name}2"]
        for each in self.names:
            self.add_module(each, nn.Linear(WIDTH, WIDTH))
        self.head = nn.Linear(WIDTH, 7)

    def forward(self, x: Tensor) -> Tensor:
        for name in self.names:
            x = torch.relu(self.get_submodule(name)(x))
        return torch.as_tensor(self.head(x))


def __getattr__(name: str) -> object:
    """The factories, called `build_long` and so on."""
    key = name.removeprefix("build_")
    found = {**NAMES, **REFUSED}.get(key)
    if not name.startswith("build_") or found is None:
        raise AttributeError(name)
    return lambda: Named(found)


def source(key: str) -> SourceOptions:
    return SourceOptions(
        f"adversarial.test_names:build_{key}", data="adversarial.test_names:batches"
    )


@pytest.mark.parametrize(
    ("key", "to_onnx"),
    [(key, key in EXPORTED) for key in NAMES]
    + [pytest.param(key, True, marks=pytest.mark.slow) for key in NAMES if key not in EXPORTED],
)
def test_a_name_is_the_same_in_every_file(key: str, *, to_onnx: bool, tmp_path: Path) -> None:
    options = RunOptions(
        source(key), FolderOptions(tmp_path / "out"), Budget.parse("60%"), to_onnx=to_onnx
    )
    result = run(options)
    assert result.report.verified is to_onnx
    assert next(s.name for s in run(options).report.stages if s.reused) == "profile"
    wanted = {NAMES[key], f"{NAMES[key]}2", "head"}
    for name in ("plan.json", "lrcompress.json", "report.json", "profile/profile.json"):
        layers = json.loads((tmp_path / "out" / name).read_text())["layers"]
        assert {layer["name"] for layer in layers} == wanted
    loaded = lrcompress.load(tmp_path / "out")
    factored = [x.name for x in result.plan.layers if x.params < x.dense_params]
    assert factored
    assert all(type(loaded.get_submodule(name)) is not nn.Linear for name in factored)


@pytest.mark.parametrize("key", REFUSED)
def test_a_name_that_cannot_be_written_is_told_before_any_work(key: str, tmp_path: Path) -> None:
    for work in (
        lambda: run(RunOptions(source(key), FolderOptions(tmp_path / "o"), Budget.parse("60%"))),
        lambda: run_profile(source(key), FolderOptions(tmp_path / "o")),
    ):
        with pytest.raises(ModelError, match="cannot be written; rename") as told:
            work()
        assert str(told.value).isprintable()
        assert not (tmp_path / "o").exists()
