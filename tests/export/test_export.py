"""The exported file computes what the network computes, in any shape, from what it stores once."""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.errors import ExportError
from lrcompress.export.export_onnx import ExportReport, export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.forward import named_outputs
from lrcompress.export.session import open_session
from lrcompress.export.verify.parity import tolerance
from lrcompress.graph.kernels import missing_kernels
from lrcompress.layers import describe, replace_, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.structures import LowRank
from lrcompress.structures.factorized import FactorizedEmbedding, TiedFactorizedHead

VOCABULARY = 101


def factorise_(module: nn.Module, rank: int) -> nn.Module:
    """Every layer below its break-even rank as two factors, tied heads with their embedding."""
    for spec in describe(module).layers:
        if rank > spec.break_even_rank:
            continue
        layer, structure = module.get_submodule(spec.name), LowRank(rank)
        factors = structure.fit(weight_matrix(layer), Whitening(), spec)
        replacement = structure.build(layer, spec, factors, getattr(layer, "bias", None))
        heads = [module.get_submodule(name) for name in spec.tied]
        replace_(module, spec.name, replacement)
        for name, head in zip(spec.tied, heads, strict=True):
            assert isinstance(replacement, FactorizedEmbedding)
            replace_(module, name, TiedFactorizedHead(replacement, head.bias))
    return module


def transformer(kind: str) -> nn.Module:
    transformers = pytest.importorskip("transformers")
    sizes = {"vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 64}
    layers = {"num_hidden_layers": 1, "num_attention_heads": 4, "max_position_embeddings": 64}
    torch.manual_seed(0)
    if kind == "bert":
        module = transformers.BertModel(transformers.BertConfig(**sizes, **layers))
    elif kind == "llama":
        config = transformers.LlamaConfig(
            **sizes, **layers, num_key_value_heads=2, tie_word_embeddings=True
        )
        module = transformers.LlamaForCausalLM(config)
    elif kind == "gpt2":
        config = transformers.GPT2Config(
            vocab_size=VOCABULARY, n_embd=32, n_layer=1, n_head=4, n_positions=64
        )
        module = transformers.GPT2LMHeadModel(config)
    else:
        config = transformers.ViTConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            image_size=16,
            patch_size=4,
            num_labels=7,
        )
        module = transformers.ViTForImageClassification(config)
    with torch.no_grad():  # distinct biases: a network fresh from its constructor has zeros
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return module.eval()


def tokens(rows: int = 2, length: int = 11) -> dict[str, Tensor]:
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[-1, length // 2 :] = 0
    return {"input_ids": torch.randint(VOCABULARY, (rows, length)), "attention_mask": mask}


def example(kind: str) -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {"pixel_values": torch.randn(2, 3, 16, 16)} if kind == "vit" else tokens()


class Tower(nn.Module):
    """A small network on vectors, whose forward gives a plain tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 48), nn.Linear(48, 5)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.second(functional.gelu(self.first(features)))
        return out


def run(path: Path, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
    session = open_session(path)
    names = [output.name for output in session.get_outputs()]
    feed = {name: tensor.numpy() for name, tensor in batch.items()}
    return dict(zip(names, session.run(None, feed), strict=True))


def relative_error(got: np.ndarray, wanted: Tensor) -> float:
    ours = wanted.detach().numpy().astype(np.float64)
    return float(np.linalg.norm(got - ours) / np.linalg.norm(ours))


def export(module: nn.Module, batch: dict[str, Tensor], path: Path, **options) -> ExportReport:
    return export_onnx(module, batch, path, ExportOptions(**options))


Exported = tuple[nn.Module, Path, ExportReport]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Callable[..., Exported]:
    """Tracing takes seconds: each network is exported once for all tests that only read it."""

    @cache
    def once(kind: str, rank: int | None, precision: str, opset: int) -> Exported:
        module = transformer(kind)
        if rank is not None:
            factorise_(module, rank)
        path = tmp_path_factory.mktemp("exported") / "model.onnx"
        options = {"precision": precision, "opset": opset, "metadata": {"fingerprint": "abc"}}
        return module, path, export(module, example(kind), path, **options)

    def get(kind: str, rank: int | None = None, precision: str = "fp32", opset: int = 20):
        return once(kind, rank, precision, opset)

    return get


def real_rows(values, batch: dict[str, Tensor]):
    """What stands at padding means nothing."""
    mask = batch.get("attention_mask")
    if mask is None or tuple(values.shape[:2]) != tuple(mask.shape) or len(values.shape) != 3:
        return values
    return values[mask.bool() if isinstance(values, Tensor) else mask.bool().numpy()]


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        pytest.param("bert", 6, id="factorised-bert"),
        pytest.param("llama", 6, id="factorised-llama"),
        pytest.param("vit", None, id="dense-vit"),
        *(
            pytest.param(kind, rank, marks=pytest.mark.slow, id=f"{word}-{kind}")
            for kind, rank, word in (
                ("gpt2", 6, "factorised"),
                ("vit", 6, "factorised"),
                ("bert", None, "dense"),
                ("llama", None, "dense"),
                ("gpt2", None, "dense"),
            )
        ),
    ],
)
def test_network_and_file_agree_on_shapes_not_seen(kind: str, rank: int | None, exported):
    module, path, report = exported(kind, rank)
    if kind == "vit":
        others = [{"pixel_values": torch.randn(rows, 3, 16, 16)} for rows in (1, 3)]
    else:
        others = [tokens(rows, length) for rows, length in ((1, 1), (3, 20), (2, 2))]
        others[0]["attention_mask"][:] = 1
    for batch in others:
        got = run(path, batch)
        with torch.no_grad():
            wanted = named_outputs(module(**batch))
        assert set(got) == set(wanted) == {port.name for port in report.outputs}
        for name, values in got.items():
            error = relative_error(real_rows(values, batch), real_rows(wanted[name], batch))
            assert error <= tolerance("fp32", products=20, inner=64)


def test_axes_are_named(exported):
    _, path, report = exported("bert", 6)
    by_name = {port.name: port for port in (*report.inputs, *report.outputs)}
    assert by_name["input_ids"].axes == ("batch", "sequence")
    assert by_name["attention_mask"].axes == ("batch", "sequence")
    assert by_name["last_hidden_state"].axes == ("batch", "sequence", 32)
    assert by_name["pooler_output"].axes == ("batch", 32)
    stored = {value.name: value for value in onnx.load(path).graph.input}
    dims = stored["input_ids"].type.tensor_type.shape.dim
    assert [dim.dim_param for dim in dims] == ["batch", "sequence"]


def test_batch_of_one_is_enough_to_trace(tmp_path: Path):
    module = WithMaskTable().eval()
    export(module, {"input_ids": torch.randint(VOCABULARY, (1, 5))}, tmp_path / "model.onnx")
    batch = {"input_ids": torch.randint(VOCABULARY, (4, 9))}
    got = run(tmp_path / "model.onnx", batch)["output"]
    assert relative_error(got, module(**batch)) <= tolerance("fp32", 40, 64)


@pytest.mark.slow
def test_batch_of_one_is_enough_to_trace_a_masked_encoder(tmp_path: Path):
    module = transformer("bert")
    export(module, tokens(1, 5), tmp_path / "model.onnx")
    batch = tokens(4, 9)
    got = run(tmp_path / "model.onnx", batch)["pooler_output"]
    with torch.no_grad():
        wanted = module(**batch).pooler_output
    assert relative_error(got, wanted) <= tolerance("fp32", 40, 64)


@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("bert", "gpt2"))]
)
def test_half_precision_stays_close_to_float32(kind: str, exported):
    module, path, report = exported(kind, 6, "fp16")
    assert {port.dtype for port in report.outputs} == {"float"}
    batch = example(kind)
    with torch.no_grad():
        wanted = named_outputs(module(**batch))
    for name, values in run(path, batch).items():
        assert values.dtype == np.float32
        # unit roundoff 4.9e-4, growing with the root of some ten products in a row
        error = relative_error(real_rows(values, batch), real_rows(wanted[name], batch))
        assert error <= 4.9e-4 * 10**0.5


@pytest.mark.parametrize(
    ("precision", "size"),
    [("fp32", 4), ("fp16", 2), pytest.param("bf16", 2, marks=pytest.mark.slow)],
)
def test_weights_are_stored_in_the_precision(precision: str, size: int, exported):
    module, _, report = exported("llama", 6, precision)
    params = sum(p.numel() for p in module.parameters())
    assert 0 <= report.parameter_bytes - size * params < 1000


def test_rotary_angles_stay_float32(exported):
    _, path, _ = exported("llama", 6, "fp16")
    tables = [t for t in onnx.load(path).graph.initializer if "inv_freq" in t.name]
    assert [t.data_type for t in tables] == [onnx.TensorProto.FLOAT]


def test_half_precision_border_on_request(tmp_path: Path):
    options = {"precision": "fp16", "keep_io": False}
    report = export(
        Tower().eval(), {"features": torch.randn(2, 12)}, tmp_path / "m.onnx", **options
    )
    assert {port.dtype for port in (*report.inputs, *report.outputs)} == {"float16"}


@pytest.mark.parametrize(
    ("precision", "opset"),
    [
        ("fp32", 20),
        ("fp16", 20),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in (("bf16", 20), ("fp16", 23))),
    ],
)
def test_every_node_has_a_cuda_kernel(precision: str, opset: int, exported):
    _, path, report = exported("llama", 6, precision, opset)
    model = onnx.load(path)
    assert missing_kernels(model, precision) == ()
    assert "Einsum" not in report.node_counts
    assert {entry.domain: entry.version for entry in model.opset_import} == {"": opset}


def test_nothing_is_left_for_constant_nodes_to_say(tmp_path: Path):
    """TensorRT wants the axes of a ReduceSum, and every other parameter, as initializers."""

    class Sums(nn.Module):
        def forward(self, features: Tensor) -> dict[str, Tensor]:
            return {"sums": features.sum(1), "mean": features.mean((1, 2))}

    export(Sums(), {"features": torch.randn(2, 5, 6)}, tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    stored = {tensor.name for tensor in graph.initializer}
    reductions = [node for node in graph.node if node.op_type.startswith("Reduce")]
    assert reductions
    assert all(node.input[1] in stored for node in reductions)
    assert not any(node.op_type == "Constant" for node in graph.node)


def test_encoder_reshapes_need_no_shape_arithmetic(exported):
    _, path, report = exported("vit")
    graph = onnx.load(path).graph
    stored = {tensor.name for tensor in graph.initializer}
    reshapes = [node for node in graph.node if node.op_type == "Reshape"]
    assert reshapes
    assert all(node.input[1] in stored for node in reshapes)
    assert report.rewrites["static_reshapes"] == len(reshapes)


@pytest.mark.parametrize(
    ("kind", "rank"),
    [
        pytest.param("llama", 6, id="factorised-llama"),
        *(
            pytest.param(kind, rank, marks=pytest.mark.slow, id=f"{word}-{kind}")
            for kind, rank, word in (
                ("gpt2", 6, "factorised"),
                ("llama", None, "dense"),
                ("gpt2", None, "dense"),
            )
        ),
    ],
)
def test_tied_head_is_stored_once(kind: str, rank: int | None, exported):
    _, path, _ = exported(kind, rank)
    wide = [tensor for tensor in onnx.load(path).graph.initializer if VOCABULARY in tensor.dims]
    assert len(wide) == 1


def test_weights_keep_their_names(exported):
    module, path, _ = exported("bert", 6)
    stored = {tensor.name.removesuffix(".T") for tensor in onnx.load(path).graph.initializer}
    assert {name for name, p in module.named_parameters() if p.dim() > 1} <= stored


def test_parameter_with_the_suffix_of_a_transpose_keeps_its_name(tmp_path: Path):
    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.T = nn.Parameter(torch.randn(4, 3))

        def forward(self, input: Tensor) -> Tensor:
            return input @ self.T

    module = nn.Sequential(Product()).eval()
    export(module, {"input": torch.randn(2, 4)}, tmp_path / "m.onnx")
    assert [t.name for t in onnx.load(tmp_path / "m.onnx").graph.initializer] == ["0.T"]


def test_file_says_where_it_comes_from_but_not_on_which_machine(exported):
    _, path, _ = exported("bert", 6)
    noted = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    assert noted["lrcompress.fingerprint"] == "abc"
    assert noted["lrcompress.precision"] == "fp32"
    assert noted["lrcompress.version"]
    assert b'File "' not in path.read_bytes()
    assert str(Path.cwd()).encode() not in path.read_bytes()


def test_file_is_the_weights_and_little_else(exported):
    _, path, report = exported("bert", 6)
    assert report.bytes == path.stat().st_size
    assert report.bytes - report.parameter_bytes < 250 * sum(report.node_counts.values())


def test_exporter_is_silent_and_leaves_the_network_alone(tmp_path: Path, capfd, caplog):
    module = transformer("bert").train()
    module.config.use_cache = True
    before = {name: p.clone() for name, p in module.named_parameters()}
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.WARNING):
        warnings.simplefilter("always")
        export(module, example("bert"), tmp_path / "model.onnx", precision="fp16")
    assert capfd.readouterr() == ("", "")
    assert not caught
    assert not caplog.records
    assert module.training
    assert module.config.use_cache
    assert all(torch.equal(before[name], p) for name, p in module.named_parameters())


def test_same_network_gives_the_same_bytes(exported, tmp_path: Path):
    _, first, _ = exported("vit")
    options = {"precision": "fp32", "opset": 20, "metadata": {"fingerprint": "abc"}}
    export(transformer("vit"), example("vit"), tmp_path / "second", **options)
    assert first.read_bytes() == (tmp_path / "second").read_bytes()


def test_report_is_json(tmp_path: Path):
    from dataclasses import asdict

    report = export(Tower().eval(), {"features": torch.randn(2, 12)}, tmp_path / "model.onnx")
    assert json.loads(json.dumps(asdict(report)))["files"] == {"model.onnx": report.bytes}


def test_external_data_on_request_and_none_left_over(tmp_path: Path):
    module, batch = Tower().eval(), {"features": torch.randn(2, 12)}
    path, data = tmp_path / "model.onnx", tmp_path / "model.onnx.data"
    report = export(module, batch, path, external_data=True)
    assert set(report.files) == {"model.onnx", "model.onnx.data"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "model.onnx.data"]
    assert data.stat().st_size >= 4 * module.first.weight.numel()
    assert relative_error(run(path, batch)["output"], module(**batch)) <= tolerance("fp32", 2, 48)
    export(module, batch, path, external_data=False)
    assert not data.exists()


def test_weights_beyond_protobuf_go_beside_the_graph(tmp_path: Path, monkeypatch):
    from lrcompress.export import write

    monkeypatch.setattr(write, "PROTOBUF_LIMIT_BYTES", write.GRAPH_ROOM_BYTES + 1000)
    module, batch = Tower().eval(), {"features": torch.randn(2, 12)}
    assert set(export(module, batch, tmp_path / "m.onnx").files) == {"m.onnx", "m.onnx.data"}
    with pytest.raises(ExportError, match="do not fit into one ONNX file"):
        export(module, batch, tmp_path / "m.onnx", external_data=False)


class WithTable(Tower):
    """Adds a computed float32 table to its activations, so that it only works in one dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.linspace(0, 1, 48), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        out: Tensor = self.second(self.first(features) + self.table)
        return out


def test_table_that_must_be_cast_is_reported(tmp_path: Path):
    batch = {"features": torch.randn(2, 12)}
    report = export(WithTable().eval(), batch, tmp_path / "model.onnx", precision="fp16")
    assert report.notes == ("tables cast to fp16: table",)


class WithMaskTable(nn.Module):
    """Attention written out, with a table of infinities as its mask."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(VOCABULARY, 16), nn.Linear(16, 16)
        table = torch.full((32, 32), -torch.inf).triu(1)
        self.register_buffer("future", table, persistent=False)

    def forward(self, input_ids: Tensor) -> Tensor:
        x, length = self.embed(input_ids), input_ids.shape[1]
        scores = x @ x.transpose(1, 2) + self.future[:length, :length]
        out: Tensor = self.out(scores.softmax(-1) @ x)
        return out


def test_mask_table_of_infinities_is_no_overflow(tmp_path: Path):
    module, batch = WithMaskTable().eval(), {"input_ids": torch.randint(VOCABULARY, (2, 9))}
    report = export(module, batch, tmp_path / "model.onnx", precision="fp16")
    assert report.notes == ("tables cast to fp16: future",)
    got = run(tmp_path / "model.onnx", batch)["output"]
    assert relative_error(got, module(**batch)) <= 4.9e-4 * 10**0.5


def test_overflowing_weight_is_named(tmp_path: Path):
    module = Tower().eval()
    with torch.no_grad():
        module.second.weight[0, 0] = 1e6
    with pytest.raises(ExportError, match=r"second\.weight: values exceed the range of fp16"):
        export(module, {"features": torch.randn(2, 12)}, tmp_path / "m.onnx", precision="fp16")
    assert not list(tmp_path.iterdir())


class FixedLength(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(VOCABULARY, 8), nn.Linear(8 * 7, 3)

    def forward(self, input_ids: Tensor) -> Tensor:
        out: Tensor = self.head(self.embed(input_ids).flatten(1))
        return out


class FixedByTracing(nn.Module):
    """Takes any length, but its trace holds that of the example."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, 8)

    def forward(self, input_ids: Tensor) -> Tensor:
        weights = torch.ones(int(input_ids.shape[1]), device="cpu")
        weights = torch.tensor(weights.tolist()) / len(weights.tolist())
        return torch.einsum("btc,t->bc", self.embed(input_ids), weights)


@pytest.mark.parametrize(
    ("module", "why"),
    [
        (FixedLength(), "the length of input_ids is fixed to 7: FixedLength fails at"),
        (FixedByTracing(), "axis 1 of input_ids is fixed to 7: FixedByTracing takes other sizes"),
    ],
)
def test_length_that_cannot_vary_is_fixed_and_said(module: nn.Module, why: str, tmp_path: Path):
    batch = {"input_ids": torch.randint(VOCABULARY, (2, 7))}
    report = export(module.eval(), batch, tmp_path / "model.onnx")
    assert report.inputs[0].axes == ("batch", 7)
    assert report.fixed_axes == {"input_ids": (1,)}
    (note,) = report.notes
    assert note.startswith(why)
    asked = export(module.eval(), batch, tmp_path / "asked.onnx", static_sequence=True)
    assert asked.inputs == report.inputs


@pytest.mark.parametrize(
    "module", [FixedLength(), pytest.param(FixedByTracing(), marks=pytest.mark.slow)]
)
def test_length_that_cannot_vary_is_refused_where_it_is_asked_to(module, tmp_path: Path):
    batch = {"input_ids": torch.randint(VOCABULARY, (2, 7))}
    with pytest.raises(ExportError, match=r"axis 1 .* leave it out|cannot vary") as caught:
        export(module.eval(), batch, tmp_path / "m.onnx", dynamic={"input_ids": {1: ""}})
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_limit_of_positions_is_noted(tmp_path: Path):
    class Positions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed, self.place = nn.Embedding(VOCABULARY, 8), nn.Embedding(16, 8)

        def forward(self, input_ids: Tensor) -> Tensor:
            length = input_ids.shape[1]
            assert length <= 16
            out: Tensor = self.embed(input_ids) + self.place(torch.arange(length))
            return out

    batch = {"input_ids": torch.randint(VOCABULARY, (2, 9))}
    report = export(Positions().eval(), batch, tmp_path / "model.onnx")
    assert report.axis_limits["sequence"] == (1, 16)


class MaskedAttention(nn.Module):
    """Rows that may look at nothing give zero in torch; -inf alone would make them NaN."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        heads = x.unflatten(-1, (2, -1)).transpose(1, 2)  # (b, 2, t, e)
        allowed = mask.bool()[:, None, None, :]
        if self.kind == "causal":
            return functional.scaled_dot_product_attention(heads, heads, heads, is_causal=True)
        if self.kind == "float":
            allowed = torch.zeros(allowed.shape).masked_fill(~allowed, -torch.inf)
        if self.kind == "grouped":
            return functional.scaled_dot_product_attention(
                heads, heads[:, :1], heads[:, :1], attn_mask=allowed, enable_gqa=True
            )
        return functional.scaled_dot_product_attention(heads, heads, heads, attn_mask=allowed)


@pytest.mark.parametrize(
    "kind",
    ["bool", "causal", *(pytest.param(k, marks=pytest.mark.slow) for k in ("float", "grouped"))],
)
def test_attention_agrees_even_where_nothing_is_allowed(kind: str, tmp_path: Path):
    torch.manual_seed(0)
    module = MaskedAttention(kind).eval()
    dynamic = {"x": {1: "sequence"}}
    batch = {"x": torch.randn(3, 6, 8), "mask": torch.ones(3, 6, dtype=torch.long)}
    export(module, batch, tmp_path / "model.onnx", dynamic=dynamic)
    batch["mask"][1, 2:] = 0
    batch["mask"][2] = 0
    got = run(tmp_path / "model.onnx", batch)["output"]
    wanted = module(**batch).numpy()
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, wanted, atol=1e-6)  # sums of six values of order one
    if kind != "causal":
        assert np.all(got[2] == 0)


def test_outputs_take_the_names_of_the_field():
    x = torch.ones(2)
    assert list(named_outputs(x)) == ["output"]
    assert list(named_outputs((x, (x, x)))) == ["output_0", "output_1_0", "output_1_1"]
    raw = {"logits": x, "past_key_values": (x,), "hidden_states": (x, x), "loss": None}
    assert list(named_outputs(raw)) == ["logits", "hidden_states_0", "hidden_states_1"]


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({"x": torch.randn(2, 12)}, {}, "it takes: features"),
        ({"features": torch.randn(2, 13)}, {}, "fails on inputs features"),
        ({"features": torch.randn(2, 12)}, {"opset": 19}, "opset 19 is not supported"),
        ({"features": torch.randn(2, 12)}, {"precision": "int4"}, "precision 'int4' is unknown"),
        ({"features": torch.randn(2, 12)}, {"dynamic": {"ids": {1: "n"}}}, "no input named 'ids'"),
        ({"features": torch.randn(2, 12)}, {"dynamic": {"features": {5: "n"}}}, "no axis 5"),
        ({"features": torch.tensor(1.0)}, {}, "scalar"),
        ({}, {}, "it takes: features"),
    ],
)
def test_what_cannot_be_exported_is_said_in_one_line(batch, options, message, tmp_path: Path):
    with pytest.raises(ExportError, match=message) as caught:
        export(Tower().eval(), batch, tmp_path / "model.onnx", **options)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_missing_and_full_folders_are_named(tmp_path: Path, monkeypatch):
    module, batch = Tower().eval(), {"features": torch.randn(2, 12)}
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match="a file is where a folder should be"):
        export(module, batch, tmp_path / "file" / "model.onnx")
    (tmp_path / "file").unlink()
    from lrcompress.export import write

    usage = type("Usage", (), {"free": 10})
    monkeypatch.setattr(write.shutil, "disk_usage", lambda _: usage)
    with pytest.raises(ExportError, match="no space left on its disk"):
        export(module, batch, tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_failed_export_keeps_the_earlier_file(tmp_path: Path, monkeypatch):
    path, batch = tmp_path / "model.onnx", {"features": torch.randn(2, 12)}
    export(Tower().eval(), batch, path)
    earlier = path.read_bytes()
    from lrcompress.export import write

    def interrupted(path: Path) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(write, "_check", interrupted)
    with pytest.raises(ExportError, match="no space left on its disk"):
        export(Tower().eval(), batch, path)
    assert path.read_bytes() == earlier
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]


def test_mask_that_allows_everything_leaves_no_trace(exported):
    _, path, report = exported("vit")
    operators = {node.op_type for node in onnx.load(path).graph.node}
    assert report.rewrites["trivial_masks"] == 2  # a sum and a product in its one layer
    assert not operators & {"Where", "IsNaN", "ReduceMax"}
