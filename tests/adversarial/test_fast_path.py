"""torch's own encoder with padding: no fused kernels meanwhile, the same results, all restored."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import lrcompress
from adversarial.whole_path import (
    CLOSE,
    WIDTH,
    assert_exports,
    compressed,
    ids,
    low_rank_,
)
from lrcompress.errors import DataError
from lrcompress.network.batches import Batch
from lrcompress.network.unfused import UnnestedEncoder, unfused


class Subclassed(nn.TransformerEncoder):
    """Its forward is torch's."""


class Tagger(nn.Module):
    """Scores of every position, padding included: that it is zero there shows."""

    def __init__(
        self, kind: type[nn.TransformerEncoder] = nn.TransformerEncoder, layers: int = 2
    ) -> None:
        super().__init__()
        self.table = nn.Embedding(40, WIDTH)
        layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True, dropout=0.0)
        self.encoder = kind(layer, layers)
        self.head = nn.Linear(WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.encoder(self.table(x), src_key_padding_mask=x == 0))
        return out


class LayerAlone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 2, 2 * WIDTH, batch_first=True, dropout=0.0)
        self.attention = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, 12)

    def forward(self, x: Tensor) -> Tensor:
        padding = x == 0
        hidden = self.layer(self.table(x), src_key_padding_mask=padding)
        mixed, _ = self.attention(hidden, hidden, hidden, key_padding_mask=padding)
        out: Tensor = self.head(hidden + mixed)
        return out


def padded() -> list[Batch]:
    found = ids(39, 9, count=8)
    for batch in found:
        batch["x"] += 1
        for row in range(1, 8):
            batch["x"][row, 9 - row :] = 0
    return found


def _hooked() -> nn.Module:
    module = Tagger(layers=1)
    module.encoder.layers[0].linear1.register_forward_hook(lambda layer, args, y: 0.5 * y)  # type: ignore[union-attr]
    return module


MAKE: dict[str, Callable[[], nn.Module]] = {
    "encoder": Tagger,
    "subclass": lambda: Tagger(Subclassed),
    "layer alone": LayerAlone,
}


def dense_and_compressed(name: str, *, convert: bool) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense = low_rank_(MAKE[name]())
    module = copy.deepcopy(dense)
    if convert:
        lrcompress.convert_(module, padded()[0])
    return dense, compressed(module, padded())[0]


@pytest.mark.parametrize("convert", [False, True], ids=["as it is", "converted"])
@pytest.mark.parametrize("name", MAKE)
def test_an_encoder_with_padding_goes_the_whole_path(name: str, *, convert: bool) -> None:
    dense, other = dense_and_compressed(name, convert=convert)
    batches = padded()
    assert torch.backends.mha.get_fastpath_enabled()
    with torch.no_grad():  # the fast path: what the user's own code would give
        wanted, got = dense(**batches[0]), other(**batches[0])
        torch.testing.assert_close(got, wanted, **CLOSE)


@pytest.mark.parametrize(
    ("name", "convert"),
    [("layer alone", True), pytest.param("encoder", False, marks=pytest.mark.slow)],
)
def test_the_graph_of_an_encoder_with_padding(name: str, tmp_path: Path, *, convert: bool) -> None:
    dense, other = dense_and_compressed(name, convert=convert)
    assert_exports(dense, other, padded()[0], tmp_path / "m.onnx")
    assert torch.backends.mha.get_fastpath_enabled()


def test_a_hook_inside_an_encoder_takes_the_path_that_torch_would_fail_on(tmp_path: Path) -> None:
    torch.manual_seed(0)
    dense = low_rank_(_hooked())
    other, profiled, _ = compressed(dense, padded())
    assert "encoder.layers.0.linear1" in {layer.name for layer in profiled.layers}
    with unfused(dense, other), torch.no_grad():
        wanted, got = dense(**padded()[0]), other(**padded()[0])
    torch.testing.assert_close(got, wanted, **CLOSE)
    lrcompress.export_onnx(other, padded()[0], tmp_path / "m.onnx")
    assert lrcompress.verify(tmp_path / "m.onnx", other, padded()[0]).ok


@pytest.mark.parametrize("kind", [nn.TransformerEncoder, Subclassed])
@pytest.mark.parametrize("before", [True, False])
def test_the_setting_and_the_encoder_are_as_before(
    kind: type[nn.TransformerEncoder], *, before: bool
) -> None:
    module = low_rank_(Tagger(kind))
    torch.backends.mha.set_fastpath_enabled(before)
    try:
        with unfused(module):
            assert not torch.backends.mha.get_fastpath_enabled()
            with unfused(module):
                pass
            assert module.encoder.forward.__func__ is UnnestedEncoder.forward
        with pytest.raises(DataError):
            lrcompress.profile(module, [{"unknown": torch.zeros(2)}])
        assert torch.backends.mha.get_fastpath_enabled() is before
        assert type(module.encoder) is kind
        assert "forward" not in vars(module.encoder)
    finally:
        torch.backends.mha.set_fastpath_enabled(True)


def test_positions_of_padding_are_what_the_fast_path_gives() -> None:
    module = low_rank_(Tagger())
    x = padded()[0]
    with torch.no_grad():
        wanted = module(**x)
        with unfused(module):
            torch.testing.assert_close(module(**x), wanted)
