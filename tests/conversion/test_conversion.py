"""Layers that compute a standard operation become standard layers, or stay as they are."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations

import lrcompress
from lrcompress.conversion.conversion import converted_from
from lrcompress.conversion.convert import replay_
from lrcompress.conversion.wrapped_layer import PaddedConv, ScaledLayer
from lrcompress.errors import ModelError
from lrcompress.fingerprint import model_fingerprint
from lrcompress.layers import describe

# Two orders of summation in float32, through a few layers
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


class DynamicSame(nn.Conv2d):
    """Pads by what the input's size asks for, as TensorFlow does."""

    def forward(self, input: Tensor) -> Tensor:
        pads: list[int] = []
        for axis in (1, 0):
            size, kernel = input.shape[2 + axis], self.kernel_size[axis]
            stride, dilation = self.stride[axis], self.dilation[axis]
            count = math.ceil(size / stride)
            total = max((count - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)
            pads += [total // 2, total - total // 2]
        x = functional.pad(input, pads)
        return functional.conv2d(
            x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups
        )


class StaticSame(nn.Conv2d):
    """Pads by what an image size known in advance asks for."""

    def __init__(self, channels: int, out: int, kernel: int, *, stride: int, size: int) -> None:
        super().__init__(channels, out, kernel, stride=stride)
        total = max((math.ceil(size / stride) - 1) * stride + kernel - size, 0)
        one, other = total // 2, total - total // 2
        self.static_padding = nn.ZeroPad2d((one, other, one, other))

    def forward(self, input: Tensor) -> Tensor:
        return functional.conv2d(
            self.static_padding(input), self.weight, self.bias, self.stride, self.padding
        )


class Standardised(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        weight = (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True)
        return functional.conv2d(input, weight, self.bias, self.stride, self.padding)


class Causal(nn.Conv1d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (self.kernel_size[0] - 1, 0)))


class EqualRate(nn.Module):
    """A linear layer whose weight is scaled when it is used."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n))
        self.bias = nn.Parameter(torch.randn(m))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.weight * self.weight.shape[1] ** -0.5, self.bias)


class Product(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(m, n) * n**-0.5)
        self.bias = nn.Parameter(torch.randn(m))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.T + self.bias


class Transposed(nn.Module):
    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(n, m) * n**-0.5)

    def forward(self, x: Tensor) -> Tensor:
        return torch.matmul(x, self.kernel)


class Table(nn.Module):
    def __init__(self, count: int, m: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(count, m))

    def forward(self, tokens: Tensor) -> Tensor:
        return functional.embedding(tokens, self.weight)


class ScaledTable(nn.Embedding):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * self.embedding_dim**0.5


IMAGE = torch.randn(3, 4, 13, 12, generator=torch.Generator().manual_seed(1))
ROWS = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(2))
SOUND = torch.randn(3, 4, 11, generator=torch.Generator().manual_seed(3))
TOKENS = torch.randint(30, (3, 7), generator=torch.Generator().manual_seed(4))

CONVERTIBLE: dict[str, tuple[Callable[[], nn.Module], Tensor, type[nn.Module]]] = {
    "dynamic same": (lambda: DynamicSame(4, 6, 3, stride=2), IMAGE, PaddedConv),
    "dynamic same, dilated": (lambda: DynamicSame(4, 6, 4, dilation=3), IMAGE, PaddedConv),
    "dynamic same, stride 1": (lambda: DynamicSame(4, 6, 3, groups=2), IMAGE, nn.Conv2d),
    "static same": (lambda: StaticSame(4, 6, 3, stride=2, size=12), IMAGE, PaddedConv),
    "standardised": (lambda: Standardised(4, 6, 3, padding=1), IMAGE, nn.Conv2d),
    "causal": (lambda: Causal(4, 6, 3), SOUND, PaddedConv),
    "scaled weight": (lambda: EqualRate(8, 6), ROWS, nn.Linear),
    "product": (lambda: Product(8, 6), ROWS, nn.Linear),
    "transposed": (lambda: Transposed(8, 6), ROWS, nn.Linear),
    "table": (lambda: Table(30, 6), TOKENS, nn.Embedding),
    "scaled table": (lambda: ScaledTable(30, 6, padding_idx=0), TOKENS, ScaledLayer),
}


def wrapped(layer: nn.Module) -> nn.Sequential:
    return nn.Sequential(layer, nn.Tanh()).eval()


@pytest.mark.parametrize("case", CONVERTIBLE.values(), ids=CONVERTIBLE.keys())
def test_a_layer_becomes_the_standard_one_that_it_computes(
    case: tuple[Callable[[], nn.Module], Tensor, type[nn.Module]],
) -> None:
    make, x, kind = case
    torch.manual_seed(0)
    module = wrapped(make())
    assert not describe(module).layers
    before = module(x)
    report = lrcompress.convert_(module, {"input": x})
    assert [c.name for c in report.conversions] == ["0"]
    assert type(module[0]) is kind
    assert len(describe(module).layers) == 1
    torch.testing.assert_close(module(x), before, **CLOSE)


@pytest.mark.parametrize("case", CONVERTIBLE.values(), ids=CONVERTIBLE.keys())
def test_conversions_are_made_again_without_data(
    case: tuple[Callable[[], nn.Module], Tensor, type[nn.Module]],
) -> None:
    make, x, _ = case
    torch.manual_seed(0)
    module = wrapped(make())
    again = copy.deepcopy(module)
    report = lrcompress.convert_(module, {"input": x})
    replay_(again, report.conversions)
    assert model_fingerprint(again) == model_fingerprint(module)
    assert converted_from(again).conversions == report.conversions
    assert torch.equal(again(x), module(x))


@pytest.mark.parametrize("size", [5, 8, 9, 16, 17])
def test_padding_follows_the_size_of_the_input(size: int) -> None:
    torch.manual_seed(0)
    module = wrapped(DynamicSame(4, 6, 5, stride=3))
    original = copy.deepcopy(module)
    lrcompress.convert_(module, {"input": IMAGE})
    x = torch.randn(2, 4, size, size + 1)
    torch.testing.assert_close(module(x), original(x), **CLOSE)


def test_parameters_stay_the_same_objects_where_they_are_the_weight() -> None:
    layer = Product(8, 6)
    module = wrapped(layer)
    lrcompress.convert_(module, {"input": ROWS})
    assert module[0].weight is layer.weight
    assert module[0].bias is layer.bias


def test_a_scaled_embedding_stays_tied_to_its_head() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.head = ScaledTable(30, 8), nn.Linear(8, 30, bias=False)
            self.head.weight = self.table.weight

        def forward(self, tokens: Tensor) -> Tensor:
            return self.head(torch.tanh(self.table(tokens)))

    module = Tied().eval()
    before = module(TOKENS)
    lrcompress.convert_(module, {"tokens": TOKENS})
    (spec,) = describe(module).layers
    assert (spec.name, spec.tied) == ("table.layer", ("head",))
    torch.testing.assert_close(module(TOKENS), before, **CLOSE)


def test_padding_by_size_is_exported_with_free_sizes(tmp_path: Path) -> None:
    from lrcompress.export.export_options import ExportOptions

    module = wrapped(DynamicSame(4, 6, 5, stride=3))
    lrcompress.convert_(module, {"input": IMAGE})
    free = ExportOptions(dynamic={"input": {2: "height", 3: "width"}})
    path = tmp_path / "model.onnx"
    lrcompress.export_onnx(module, {"input": IMAGE}, path, free)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    for size in range(9, 13):
        x = torch.randn(2, 4, size, size + 5)
        (found,) = session.run(None, {"input": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), module(x).detach(), **CLOSE)


# ---- left alone -----------------------------------------------------------------------------


class OddPadding(nn.Conv2d):
    """Pads by the size itself: no rule that anybody else has."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (0, input.shape[-1] % 5, 0, 0)))


class Reflected(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(functional.pad(input, (1, 1, 1, 1), mode="reflect"))


class Cosine(nn.Linear):
    """The input decides how it is scaled."""

    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(functional.normalize(input, dim=-1), self.weight, self.bias)


class Dynamic(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return functional.linear(input, self.weight * input.mean(), self.bias)


class Factored(nn.Module):
    """Smaller as it is than the product of its factors."""

    def __init__(self) -> None:
        super().__init__()
        self.u, self.v = nn.Parameter(torch.randn(8, 2)), nn.Parameter(torch.randn(2, 8))

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.u @ self.v)


class DroppedWeight(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        weight = functional.dropout(self.weight, 0.5, self.training)
        return functional.linear(input, weight, self.bias)


class WithMore(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        return torch.relu(super().forward(input))


def _hooked() -> nn.Module:
    layer = Product(8, 6)
    layer.register_forward_hook(lambda module, args, output: output + 1)
    return layer


def _patched(layer: nn.Module) -> nn.Module:
    layer.forward = lambda x: functional.linear(x, layer.weight) * 2  # type: ignore[method-assign]
    return layer


LEFT_ALONE: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "odd padding": (lambda: OddPadding(4, 6, 3), IMAGE, "in an unknown way"),
    "reflected": (lambda: Reflected(4, 6, 3), IMAGE, "zeros around it"),
    "normalised input": (lambda: Cosine(8, 6), ROWS, "not that of linear"),
    "weight from the input": (lambda: Dynamic(8, 6), ROWS, "depends on its input"),
    "factored already": (Factored, ROWS, "more numbers than the parameters"),
    "dropout of the weight": (lambda: DroppedWeight(8, 6), ROWS, "in training"),
    "activation": (lambda: WithMore(8, 6), ROWS, "not that of linear"),
    "hook": (_hooked, ROWS, "forward hooks"),
    "patched": (lambda: _patched(Product(8, 6)), ROWS, "was replaced on this one module"),
    "standard layer, patched": (lambda: _patched(nn.Linear(8, 6)), ROWS, "was replaced"),
    "spectral norm": (
        lambda: parametrizations.spectral_norm(nn.Linear(8, 6)), ROWS, "computed from other",
    ),
    "transposed convolution": (lambda: nn.ConvTranspose2d(4, 6, 3), IMAGE, "no matrix form"),
}  # fmt: skip


@pytest.mark.parametrize("case", LEFT_ALONE.values(), ids=LEFT_ALONE.keys())
def test_what_is_no_standard_layer_stays_with_the_reason(
    case: tuple[Callable[[], nn.Module], Tensor, str],
) -> None:
    make, x, words = case
    torch.manual_seed(0)
    module = wrapped(make())
    layer, before = module[0], module(x)
    report = lrcompress.convert_(module, {"input": x})
    assert report.conversions == ()
    assert module[0] is layer
    assert torch.equal(module(x), before)
    assert not describe(module).layers
    assert any(words in item.reason for item in report.left_alone if item.matrix_params)


def test_modes_gradients_and_random_numbers_are_as_before() -> None:
    module = nn.Sequential(Product(8, 6), nn.Dropout(), EqualRate(6, 4))
    module[2].weight.requires_grad_(False)
    module[1].eval()
    state = torch.get_rng_state()
    lrcompress.convert_(module, {"input": ROWS})
    assert [m.training for m in module] == [True, False, True]
    assert module[0].weight.requires_grad
    assert not module[2].weight.requires_grad
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())


class Parent(nn.Module):
    """Reads one layer's weight beside calling it, and another's instead of calling it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 12), nn.Linear(12, 12)
        self.c, self.d = nn.Linear(12, 12), nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.a(x))
        h = functional.linear(h, self.b.weight, self.b.bias) + self.b(h)
        h = h.to(self.a.weight.dtype) + h.new_zeros(1)
        return self.d(torch.relu(h @ self.c.weight.T))


def test_products_with_the_weight_of_a_layer_become_calls_of_it() -> None:
    module = Parent().eval()
    before = module(ROWS)
    report = lrcompress.convert_(module, {"x": ROWS})
    assert {x.name: x.became for x in report.conversions} == {"b": "used", "c": "used"}
    names = [spec.name for spec in describe(module).layers]
    assert names == ["a", "b.product", "c.product", "d"]
    assert not [x.name for x in report.left_alone if x.matrix_params]
    torch.testing.assert_close(module(ROWS), before, **CLOSE)


def test_a_layer_whose_weight_is_used_otherwise_is_left_alone() -> None:
    module = Parent().eval()
    module.d.register_forward_hook(lambda layer, args, y: y + module.a.weight.sum())
    report = lrcompress.convert_(module, {"x": ROWS})
    assert {x.name for x in report.conversions} == {"b", "c"}
    reasons = {x.name: x.reason for x in report.left_alone if x.matrix_params}
    assert reasons == {"a": "Parent reads its weight directly, besides or instead of calling it"}


class TiedByProduct(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.a = nn.Embedding(30, 12), nn.Linear(12, 12)

    def forward(self, tokens: Tensor) -> Tensor:
        h = self.table(tokens)
        return (h + self.a(h)) @ self.table.weight.t()


def test_an_embedding_whose_weight_makes_the_logits_is_tied_to_a_head() -> None:
    module = TiedByProduct().eval()
    before = module(TOKENS)
    lrcompress.convert_(module, {"tokens": TOKENS})
    table, a = describe(module).layers
    assert (table.name, table.tied, a.name) == ("table.table", ("table.head",), "a")
    torch.testing.assert_close(module(TOKENS), before, **CLOSE)


def test_the_profile_of_an_unconverted_network_says_what_would_help() -> None:
    module = nn.Sequential(nn.Linear(8, 12), Product(12, 12)).eval()
    found = lrcompress.profile(module, [{"input": ROWS[:, 0]}])
    (left,) = [item for item in found.left_alone if item.kind == "Product"]
    assert "convert_" in left.reason
    assert any(w.startswith("left alone: ") and "Product" in w for w in found.warnings)
    lrcompress.convert_(module, {"input": ROWS[:, 0]})
    found = lrcompress.profile(module, [{"input": ROWS[:, 0]}])
    assert [layer.name for layer in found.layers] == ["0", "1"]
    assert not any("left alone" in w for w in found.warnings)


def test_a_second_conversion_changes_nothing() -> None:
    module = wrapped(Product(8, 6))
    lrcompress.convert_(module, {"input": ROWS})
    layer, told = module[0], converted_from(module)
    assert lrcompress.convert_(module, {"input": ROWS}).conversions == ()
    assert module[0] is layer
    assert converted_from(module) == told


def test_replaying_on_other_code_is_refused() -> None:
    module = wrapped(Product(8, 6))
    done = lrcompress.convert_(module, {"input": ROWS}).conversions
    with pytest.raises(ModelError, match="no Product of this name"):
        replay_(wrapped(nn.Linear(8, 6)), done)
    other = wrapped(nn.Linear(8, 6))
    replay_(other, done, strict=False)
    assert converted_from(other).conversions == ()


# ---- whole runs -----------------------------------------------------------------------------


class PaddedNet(nn.Module):
    """Convolutions that pad by size, one of normalised weights, and a head of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = DynamicSame(3, 16, 3, stride=2, bias=False)
        self.middle = Standardised(16, 24, 3, padding=1)
        self.last = StaticSame(24, 24, 3, stride=2, size=8)
        self.head = Product(24, 10)

    def forward(self, pixels: Tensor) -> Tensor:
        x = torch.relu(self.stem(pixels))
        x = torch.relu(self.last(torch.relu(self.middle(x))))
        return self.head(x.mean((2, 3)))


def build() -> nn.Module:
    torch.manual_seed(0)
    return PaddedNet().eval()


def batches() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"pixels": torch.randn(6, 3, 16, 16, generator=generator)} for _ in range(3)]


@pytest.mark.usefixtures("in_tests_folder")
def test_a_run_converts_and_loads_again(tmp_path: Path) -> None:
    from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, is_made_from, run
    from lrcompress.planning.budget import Budget

    source = SourceOptions("test_conversion:build", data="test_conversion:batches")
    where = FolderOptions(tmp_path / "out", report=False)
    result = run(RunOptions(source, where, Budget.parse("60%"), to_onnx=False))
    assert {layer.name for layer in result.plan.layers} == {
        "stem.conv", "middle", "last.conv", "head",
    }  # fmt: skip
    assert len(converted_from(lrcompress.load(tmp_path / "out")).conversions) == 4
    assert is_made_from(tmp_path / "out", lrcompress.load_model("test_conversion:build").module)

    over = SourceOptions(str(tmp_path / "out"), data=source.data)
    again = FolderOptions(tmp_path / "again", report=False)
    run(RunOptions(over, again, Budget.parse("80%"), to_onnx=False))
    x = batches()[0]["pixels"]
    assert lrcompress.load(tmp_path / "again")(x).shape == build()(x).shape


@pytest.mark.slow
@pytest.mark.usefixtures("in_tests_folder")
def test_a_run_converts_exports_and_loads_again(tmp_path: Path) -> None:
    from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, is_made_from, run
    from lrcompress.pipeline.options import TuneRequest, TuneRunOptions
    from lrcompress.pipeline.run_tune import run_tune
    from lrcompress.planning.budget import Budget
    from lrcompress.tuning.options import TuneOptions

    source = SourceOptions("test_conversion:build", data="test_conversion:batches")
    where = FolderOptions(tmp_path / "out", report=False)
    result = run(RunOptions(source, where, Budget.parse("60%")))
    assert result.report.verified
    assert {layer.name for layer in result.plan.layers} == {
        "stem.conv", "middle", "last.conv", "head",
    }  # fmt: skip
    assert sum(layer.params < layer.dense_params for layer in result.plan.layers) >= 2
    loaded = lrcompress.load(tmp_path / "out")
    assert len(converted_from(loaded).conversions) == 4
    x = batches()[0]["pixels"]
    first = loaded(x)

    # The run's dense model is told by its fingerprint although it was converted since
    dense = lrcompress.load_model("test_conversion:build").module
    assert is_made_from(tmp_path / "out", dense)

    request = TuneRequest(TuneOptions(steps=2, learning_rate=1e-4))
    tuned = run_tune(TuneRunOptions(source.__class__("", data=source.data), where, request))
    assert tuned.report.verified

    # A run over the run: its conversions are part of loading it
    again = FolderOptions(tmp_path / "again", report=False)
    smaller = run(
        RunOptions(
            SourceOptions(str(tmp_path / "out"), data=source.data), again, Budget.parse("80%")
        )
    )
    assert smaller.report.verified
    assert lrcompress.load(tmp_path / "again")(x).shape == first.shape


class Recurrent(nn.Module):
    """Most of its parameters are recurrent weights."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 16, num_layers=3, batch_first=True)
        self.middle, self.head = nn.Linear(16, 48), nn.Linear(48, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.middle(self.lstm(x)[0][:, -1])))


def build_recurrent() -> nn.Module:
    torch.manual_seed(0)
    return Recurrent().eval()


def sequences() -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [{"x": torch.randn(6, 4, 8, generator=generator)} for _ in range(3)]


@pytest.mark.parametrize("to_onnx", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("in_tests_folder")
def test_what_share_stays_and_why_is_said_everywhere(tmp_path: Path, *, to_onnx: bool) -> None:
    from lrcompress.pipeline import FolderOptions, RunOptions, SourceOptions, run, run_profile
    from lrcompress.planning.budget import Budget
    from lrcompress_cli.json_output import compress_record, profile_record

    source = SourceOptions("test_conversion:build_recurrent", data="test_conversion:sequences")
    profiled = run_profile(source, FolderOptions(tmp_path / "profile"))
    module = build_recurrent()
    weights = sum(p.numel() for p in module.lstm.parameters() if p.dim() > 1)
    share = round(100 * weights / sum(p.numel() for p in module.parameters()))
    (line,) = [w for w in profiled.report.warnings if w.startswith("left alone")]
    assert line.startswith(f"left alone: {share} % of the parameters: LSTM lstm (recurrent weights")
    assert "3 layers" in line
    assert line in profile_record(profiled)["warnings"]
    assert "recurrent weights" in (tmp_path / "profile" / "report.html").read_text()
    budget = Budget.parse("params=90%")
    where = FolderOptions(tmp_path / "out", report=False)
    result = run(RunOptions(source, where, budget, to_onnx=to_onnx))
    assert result.report.verified is to_onnx
    assert line in compress_record(result)["warnings"]
