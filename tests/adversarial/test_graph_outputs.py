"""Outputs of a graph: one for each of the network's, in their order, under different names."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from adversarial.situations.checks import apart, graph_outputs, outputs_of
from adversarial.situations.naming import Listed
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.forward import named_outputs

BATCH = {"x": torch.randn(4, 6, generator=torch.Generator().manual_seed(0))}


class Giving(nn.Module):
    def __init__(self, give: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.layer, self.give = nn.Linear(6, 6), give

    def forward(self, x: Tensor) -> Any:
        return self.give(x, self.layer(x))


CASES: dict[str, tuple[Callable[[Tensor, Tensor], Any], list[str]]] = {
    "passed through": (lambda x, y: {"y": y, "given": x}, ["y", "given"]),
    "name of an input": (lambda x, y: {"x": y, "y": x}, ["x_2", "y"]),
    "twice": (lambda x, y: (y, y), ["output_0", "output_1"]),
    "a view": (lambda x, y: {"y": y, "same": y.view_as(y)}, ["y", "same"]),
    "one joined name": (lambda x, y: {"a_b": y, "a": {"b": 2 * y}}, ["a_b", "a_b_2"]),
    "taken number": (lambda x, y: {"x": y, "x_2": 2 * y}, ["x_3", "x_2"]),
    "no name": (lambda x, y: {"": y}, ["output"]),
    "changed in place": (lambda x, y: {"y": y, "x2": x.add_(1)}, ["y", "x2"]),
}


@pytest.mark.parametrize("case", CASES)
def test_every_output_is_there_under_its_own_name(case: str, tmp_path: Path) -> None:
    give, names = CASES[case]
    network = Giving(give).eval()
    export_onnx(network, {"x": BATCH["x"].clone()}, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [argument.name for argument in session.get_inputs()] == ["x"]
    assert [argument.name for argument in session.get_outputs()] == names
    assert apart(graph_outputs(session, BATCH), outputs_of(network, BATCH)) <= 1e-5


def test_what_no_graph_holds_is_told(tmp_path: Path) -> None:
    network = Giving(lambda x, y: {"y": y, "scale": 2.5, "deep": [{"note": "text"}], "none": None})
    report = export_onnx(network.eval(), BATCH, tmp_path / "model.onnx")
    (note,) = [x for x in report.notes if "not tensors" in x]
    assert "scale (float), deep.0.note (str)" in note


def test_names_that_are_joined_to_one_stay_two() -> None:
    one, two = torch.ones(1), torch.zeros(1)
    found = named_outputs({"a_b": one, "a": {"b": two}})
    assert [found["a_b"] is one, found["a_b_2"] is two] == [True, True]


def test_parts_may_have_names_that_are_no_names_in_python(tmp_path: Path) -> None:
    network = Listed("in", "class", 'quo"te', "line\nend", "back\\slash").eval()
    given = {"x": torch.randn(3, 24, generator=torch.Generator().manual_seed(1))}
    export_onnx(network, given, tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert apart(graph_outputs(session, given), outputs_of(network, given)) <= 1e-5
