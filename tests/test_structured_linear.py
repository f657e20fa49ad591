"""Structures of linear layers beyond low rank: what they recover, what they lose, what they export.

What every structure promises is in test_structure_contract.py.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from lrcompress.compression.replace import install_
from lrcompress.errors import FitError
from lrcompress.export.onnx import export_onnx
from lrcompress.export.verify import verify
from lrcompress.layers import LayerSpec, describe, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.structures import Interpolative, LowRank, Structure

SHAPES = [(24, 24), (40, 16), (16, 40)]


def _spec(m: int, n: int) -> LayerSpec:
    return LayerSpec("l", "linear", m, n, 1, bias=True)


def _random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# ---- exported ------------------------------------------------------------------------------


class Pair(nn.Module):
    """A Linear and a GPT-2 Conv1D on sequences, with something between them."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(16, 40), Conv1D(16, 40)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.second(torch.tanh(self.first(features)))
        return out


@pytest.mark.parametrize("structure", [Interpolative(8), Interpolative(6, chunk=1)], ids=str)
def test_a_file_computes_the_same_from_the_factors(structure: Structure, tmp_path: Path) -> None:
    torch.manual_seed(0)
    module = Pair().eval()
    for spec in describe(module).layers:
        layer = module.get_submodule(spec.name)
        factors = structure.fit(weight_matrix(layer).detach(), Whitening(), spec)
        install_(module, spec, structure, factors, layer.bias.detach())
    batch = {"features": torch.randn(2, 5, 16)}
    export_onnx(module, batch, tmp_path / "model.onnx")
    report = verify(tmp_path / "model.onnx", module, batch)  # on other batches and lengths too
    assert report.ok, report.failed
    assert report["factors"].numbers["layers"] == 2
    assert report["factors"].numbers["folded"] == ()


# ---- interpolative -------------------------------------------------------------------------


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("chunk", [1, 4, 8])
def test_an_interpolated_weight_is_the_low_rank_one(m: int, n: int, chunk: int) -> None:
    weight, spec = _random(1, m, n), _spec(m, n)
    interpolative, low_rank = Interpolative(8, chunk), LowRank(8)
    factors = interpolative.fit(weight, Whitening(), spec)
    wanted = low_rank.dense(low_rank.fit(weight, Whitening(), spec), spec)
    torch.testing.assert_close(interpolative.dense(factors, spec), wanted, rtol=0, atol=1e-11)
    assert interpolative.weight_params(spec) == low_rank.weight_params(spec) - 8**2


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_features_are_mixed_by_small_numbers(m: int, n: int) -> None:
    """Greedy volume bounds the entries of T: float32 loses no digits where features cancel."""
    factors = Interpolative(8, 1).fit(_random(1, m, n), Whitening(), _spec(m, n))
    assert float(factors["mix"].abs().max()) < 4


def test_chunks_that_cannot_span_the_weight_are_refused() -> None:
    weight, spec = _random(1, 16, 16), _spec(16, 16)
    weight[..., torch.arange(16) % 4 > 0] = 0  # one feature in every chunk of four
    assert Interpolative(4, 1).fit(weight, Whitening(), spec)
    with pytest.raises(FitError, match="chunk=1"):
        Interpolative(4, 4).fit(weight, Whitening(), spec)
