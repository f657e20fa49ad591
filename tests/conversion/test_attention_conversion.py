"""Attention with a linear layer for each projection gives what nn.MultiheadAttention gives."""

from __future__ import annotations

import copy
import itertools
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn
from torch.nn import functional

import lrcompress
from lrcompress.conversion.attention import SplitAttention
from lrcompress.conversion.conversion import converted_from
from lrcompress.layers import describe
from lrcompress.network.unfused import UnnestedEncoder
from lrcompress_cli.main import main

HERE = Path(__file__).parent
# float32 sums of a few dozen terms of order one, in another order
CLOSE = {"rtol": 1e-5, "atol": 1e-5}
WIDTH, HEADS, EXAMPLES, TARGETS, SOURCES = 12, 4, 3, 5, 6

pytestmark = pytest.mark.filterwarnings("ignore:.*nested tensor:UserWarning")


def attention(**options: Any) -> nn.MultiheadAttention:
    torch.manual_seed(0)
    made = nn.MultiheadAttention(WIDTH, HEADS, **options)
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.3)
    return made.eval()


def inputs(made: nn.MultiheadAttention, *, batched: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sizes = ((TARGETS, WIDTH), (SOURCES, made.kdim), (SOURCES, made.vdim))
    drawn = [torch.randn(EXAMPLES, *size, generator=generator) for size in sizes]
    if not batched:
        drawn = [x[0] for x in drawn]
    elif not made.batch_first:
        drawn = [x.transpose(0, 1) for x in drawn]
    return drawn[0], drawn[1], drawn[2]


def same(one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> None:
    torch.testing.assert_close(one[0], other[0], **CLOSE)
    assert (one[1] is None) == (other[1] is None)
    if one[1] is not None and other[1] is not None:
        torch.testing.assert_close(one[1], other[1], **CLOSE)


SHAPES = {
    "plain": {},
    "without bias": {"bias": False},
    "other keys": {"kdim": 7, "vdim": 5},
    "learnt key and value": {"add_bias_kv": True},
    "zero attention": {"add_zero_attn": True},
    "both": {"add_bias_kv": True, "add_zero_attn": True, "kdim": 7},
}
PADDING = torch.zeros(EXAMPLES, SOURCES, dtype=torch.bool)
PADDING[1, 4:] = True
CAUSAL = torch.ones(TARGETS, SOURCES, dtype=torch.bool).triu(1)
EACH_HEAD = torch.zeros(EXAMPLES * HEADS, TARGETS, SOURCES, dtype=torch.bool)
EACH_HEAD[::2, :, 3] = True
MASKS: dict[str, tuple[Tensor | None, Tensor | None]] = {
    "no mask": (None, None),
    "padding": (PADDING, None),
    "padding, numbers": (PADDING.float() * -2.5, None),
    "2-D": (None, CAUSAL),
    "2-D, numbers": (None, CAUSAL.float() * -1.5),
    "3-D": (None, EACH_HEAD),
    "3-D, numbers": (None, EACH_HEAD.float() * 0.7),
    "both": (PADDING, CAUSAL),
    "both, numbers": (PADDING.float() * -9, EACH_HEAD.float() * -2),
}
WANTED = [(True, True), (True, False), (False, True)]  # weights, averaged


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS.keys())
def test_the_output_is_that_of_torch(
    masks: tuple[Tensor | None, Tensor | None], shape: dict[str, Any], *, batch_first: bool
) -> None:
    made = attention(batch_first=batch_first, dropout=0.4, **shape)
    split = SplitAttention(made)
    padding, mask = masks
    for training, (weights, averaged) in itertools.product((False, True), WANTED):
        made.train(training)
        split.train(training)
        asked = {
            "key_padding_mask": padding,
            "attn_mask": mask,
            "need_weights": weights,
            "average_attn_weights": averaged,
        }
        torch.manual_seed(5)
        theirs = made(*inputs(made), **asked)
        torch.manual_seed(5)  # the same dropout
        same(split(*inputs(made), **asked), theirs)


@pytest.mark.parametrize("batch_first", [True, False])
def test_a_single_example_needs_no_batch_axis(*, batch_first: bool) -> None:
    made = attention(batch_first=batch_first)
    split = SplitAttention(made)
    for padding, mask in (
        (PADDING[1], None),
        (PADDING[1], CAUSAL),
        (PADDING[1].float() * -3, EACH_HEAD[:HEADS].float()),
    ):
        asked = {"attn_mask": mask, "key_padding_mask": padding}
        theirs = made(*inputs(made, batched=False), **asked)
        same(split(*inputs(made, batched=False), **asked), theirs)


@pytest.mark.parametrize("weights", [True, False])
def test_a_causal_mask_that_is_told_to_be_one(*, weights: bool) -> None:
    made = attention(batch_first=True)
    split = SplitAttention(made)
    x = torch.randn(2, 6, WIDTH)
    mask = nn.Transformer.generate_square_subsequent_mask(6)
    asked = {"attn_mask": mask, "is_causal": True, "need_weights": weights}
    same(split(x, x, x, **asked), made(x, x, x, **asked))
    with pytest.raises(RuntimeError, match="attn_mask"):
        split(x, x, x, is_causal=True)


def test_gradients_are_those_of_torch() -> None:
    made = attention(batch_first=True).train()
    split = SplitAttention(made)
    for module in (made, split):
        module(*inputs(made))[0].square().sum().backward()
    packed = made.in_proj_weight.grad
    assert packed is not None
    parts = [split.q_proj.weight.grad, split.k_proj.weight.grad, split.v_proj.weight.grad]
    torch.testing.assert_close(torch.cat(parts), packed, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("nested", [True, False])
@pytest.mark.parametrize("last_norm", [True, False])
@pytest.mark.parametrize("aligned", [True, False])
def test_an_encoder_gives_what_torch_gives_padding_included(
    *, norm_first: bool, nested: bool, last_norm: bool, aligned: bool
) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(
        16, 4, 24, batch_first=True, norm_first=norm_first, activation="gelu"
    )
    norm = nn.LayerNorm(16) if last_norm else None
    nested = nested and not norm_first  # torch refuses both
    module = _Encoder(nn.TransformerEncoder(layer, 2, norm, enable_nested_tensor=nested)).eval()
    padding = torch.zeros(3, 7, dtype=torch.bool)
    padding[1, 5:] = True
    padding[2, 3:] = True
    if not aligned:
        padding = padding.flip(1)
    batch = {"x": torch.randn(3, 7, 16), "padding": padding}
    with torch.no_grad():
        before = module(**batch)
    report = lrcompress.convert_(module, batch)
    became = [c.became for c in report.conversions]
    assert became == ["attention"] * 2 + ["encoder"] * nested
    assert isinstance(module.encoder, UnnestedEncoder) == nested
    with torch.no_grad():
        torch.testing.assert_close(module(**batch), before, **CLOSE)
        whole = {**batch, "padding": torch.zeros_like(padding)}
        assert module(**whole).isfinite().all()


class _Encoder(nn.Module):
    def __init__(self, encoder: nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor, padding: Tensor) -> Tensor:
        return self.encoder(x, src_key_padding_mask=padding)


def test_every_projection_is_a_layer() -> None:
    layer = nn.TransformerEncoderLayer(16, 4, 24)
    module = _Encoder(nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)).eval()
    batch = {"x": torch.randn(5, 2, 16), "padding": torch.zeros(2, 5, dtype=torch.bool)}
    total = sum(p.numel() for p in module.parameters())
    lrcompress.convert_(module, batch)
    found = describe(module)
    names = {spec.name.rpartition(".")[2] for spec in found.layers}
    assert names == {"q_proj", "k_proj", "v_proj", "out_proj", "linear1", "linear2"}
    assert found.total_params == total
    assert not any(item.matrix_params for item in found.left_alone)


class PackedReader(nn.Module):
    """Calls torch's function with the packed weight of a module that it never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(WIDTH, HEADS), nn.Linear(WIDTH, 4)

    def forward(self, x: Tensor) -> Tensor:
        held = self.attention
        y, _ = functional.multi_head_attention_forward(
            x, x, x, WIDTH, HEADS, held.in_proj_weight, held.in_proj_bias, None, None, False, 0.0,
            held.out_proj.weight, held.out_proj.bias, training=False,
        )  # fmt: skip
        return self.head(y)


def test_a_packed_weight_that_others_read_stays() -> None:
    module = PackedReader().eval()
    batch = {"x": torch.randn(5, 2, WIDTH)}
    before = module(**batch)
    report = lrcompress.convert_(module, batch)
    assert report.conversions == ()
    assert isinstance(module.attention, nn.MultiheadAttention)
    assert torch.equal(module(**batch), before)
    reasons = {x.name: x.reason for x in report.left_alone if x.matrix_params}
    assert "PackedReader reads its weight itself" in reasons["attention"]
    assert [spec.name for spec in describe(module).layers] == ["head"]


def test_attention_with_a_hook_stays() -> None:
    module = nn.Sequential(_Self(), nn.Linear(WIDTH, 4)).eval()
    module[0].attention.register_forward_hook(lambda m, args, out: (out[0] + 1, out[1]))
    report = lrcompress.convert_(module, {"input": torch.randn(2, 5, WIDTH)})
    assert report.conversions == ()
    assert any("forward hooks" in item.reason for item in report.left_alone)


class _Self(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.attention(x, x, x)[0]
        return out


@pytest.mark.parametrize("precision", ["fp16", pytest.param("fp32", marks=pytest.mark.slow)])
def test_it_exports_with_free_axes(tmp_path: Path, precision: str) -> None:
    from lrcompress.export.export_options import ExportOptions
    from lrcompress.export.verify.verify import VerifyOptions

    module, batch = build(), batches()[0]
    lrcompress.convert_(module, batch)
    path = tmp_path / "model.onnx"
    report = lrcompress.export_onnx(module, batch, path, ExportOptions(precision=precision))
    assert report.inputs[0].axes == ("batch", "sequence")
    assert lrcompress.verify(path, module, batch, VerifyOptions()).ok


# ---- a sequence tagger, from end to end -----------------------------------------------------


class Tagger(nn.Module):
    """An encoder-decoder that gives a class for each token; padding is token 0."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 32, padding_idx=0)
        self.transformer = nn.Transformer(32, 4, 1, 1, 48, batch_first=True)
        self.head = nn.Linear(32, 11)

    def forward(self, tokens: Tensor) -> Tensor:
        padding = tokens == 0
        h = self.table(tokens)
        h = self.transformer(h, h, src_key_padding_mask=padding, memory_key_padding_mask=padding)
        return self.head(h)


def build() -> nn.Module:
    torch.manual_seed(0)
    return Tagger().eval()


def batches() -> list[dict[str, Tensor]]:
    made = []
    for seed in range(4):
        drawn = torch.randint(1, 40, (6, 9), generator=torch.Generator().manual_seed(seed))
        for row in range(6):
            drawn[row, 9 - row :] = 0
        made.append({"tokens": drawn})
    return made


@pytest.fixture
def _here() -> Iterator[None]:
    before = Path.cwd()
    os.chdir(HERE)
    yield
    os.chdir(before)


def _command(*arguments: str) -> dict[str, Any]:
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.slow
@pytest.mark.usefixtures("_here")
def test_a_tagger_is_compressed_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "out"
    model, data = "test_attention_conversion:build", "test_attention_conversion:batches"
    record = _command(
        "compress", model, "--data", data, "--budget", "50%", "-o", str(out), "--no-report"
    )
    assert record["verified"]
    assert record["compressed"]["params"] <= record["dense"]["params"] // 2
    plan = json.loads((out / "plan.json").read_text())
    assert sum("attn" in layer["name"] for layer in plan["layers"]) == 12
    trusted = ("--trust-factory", model)
    assert _command("verify", str(out / "model.onnx"), *trusted)["ok"]
    exported = _command("export", str(out), "--precision", "bf16", *trusted)
    assert Path(exported["path"]).is_file()


@pytest.mark.usefixtures("_here")
def test_a_compressed_tagger_loads_with_its_conversions(tmp_path: Path) -> None:
    from lrcompress.sources.compressed_model import save_compressed

    loaded, data = lrcompress.load_model("test_attention_conversion:build"), batches()
    original = copy.deepcopy(loaded.module)
    report = lrcompress.convert_(loaded.module, data[0])
    with torch.no_grad():
        before = original(**data[0])
        torch.testing.assert_close(loaded.module(**data[0]), before, **CLOSE)
    profile = lrcompress.profile(loaded.module, data)
    plan = lrcompress.plan(profile, "60%")
    lrcompress.compress_(loaded.module, plan, profile)
    save_compressed(loaded.module, plan, loaded, tmp_path, example=data[0], extra={})
    again = lrcompress.load(tmp_path)
    assert converted_from(again).conversions == report.conversions
    with torch.no_grad():
        assert torch.equal(again(**data[0]), loaded.module(**data[0]))
