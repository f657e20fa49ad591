"""A graph computes what its network computes from the codes that both store."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
import pytest
import torch
from stored_network import IDS, LINEAR, OTHERS, VOCABULARY, Consumers, store_, stored_network
from torch import Tensor, nn

from lrcompress.errors import ExportError
from lrcompress.export.export_onnx import ExportReport, export_onnx
from lrcompress.export.export_options import ExportOptions
from lrcompress.export.pt2 import save_pt2
from lrcompress.export.session import open_session
from lrcompress.export.verify.parity import tolerance
from lrcompress.graph.kernels import missing_kernels
from lrcompress.graph.quantised import Products
from lrcompress.number_formats import FORMATS, GridFormat, parse_format
from lrcompress.structures.stored_codes import stored_weights

TIED = ("tied_table.weight", "codes.codes.weight")  # that a head multiplies by too
FLOAT32 = tolerance("fp32", 2, 120)  # two products of at most 120 terms
CONTRIB = ("int8", "int4", "int4/16", "uint4", "int2", "uint2")
STANDARD = ("int8", "int4", "uint4", "uint2")
CASES = [("fp16", "contrib"), ("bf16", "contrib"), ("int8-dynamic", "contrib")]
CASES += [(name, "contrib") for name in CONTRIB] + [(name, "standard") for name in STANDARD]


def exported(
    folder: Path, text: str, operators: str, products: Products
) -> tuple[Consumers, ExportReport]:
    module = stored_network(text)
    options = ExportOptions(operators=operators, products=products)
    return module, export_onnx(module, IDS, folder / f"{operators}.onnx", options)


Case = tuple[str, str, Consumers, ExportReport]


def made(request, tmp_path_factory, products: Products) -> Case:
    text, operators = request.param
    folder = tmp_path_factory.mktemp(text.replace("/", "-"))
    return (text, operators, *exported(folder, text, operators, products))


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def case(request, tmp_path_factory) -> Case:
    """With rounded products, so that every weight is read by its kernel."""
    return made(request, tmp_path_factory, "rounded")


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def exact_case(request, tmp_path_factory) -> Case:
    return made(request, tmp_path_factory, "exact")


def ran(path: str, ids: Tensor, module: nn.Module, *, rounds: bool = True) -> dict[str, Tensor]:
    session = open_session(path, rounds=rounds)
    names = list(module(**IDS))
    found = session.run(names, {"input_ids": ids.numpy()})
    return dict(zip(names, map(torch.as_tensor, found), strict=True))


def test_every_format_has_a_case():
    assert {parse_format(text).type_name for text, _ in CASES} == set(FORMATS) - {"fp32"}


@pytest.mark.parametrize("shape", [(1, 3), (2, 9)])
def test_every_consumer_computes_with_the_stored_weights(exact_case, shape):
    text, _, module, report = exact_case
    ids = torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(1))
    got, wanted = ran(report.path, ids, module), module(ids)
    dynamic = text == "int8-dynamic"
    for name, value in wanted.items():
        rows = value.double().flatten(0, -2)
        scale = float(rows.square().sum(-1).mean().sqrt())
        allowed = FLOAT32 * scale
        if (dynamic and f"{name}.weight" in LINEAR) or (dynamic and name == "low_rank"):
            # a value between two codes may get the other one, in a row of each rounding
            allowed += 2 * one_code(module, name)
        error = float((got[name].double().flatten(0, -2) - rows).norm(dim=-1).max())
        assert error <= allowed, f"{name}: {error / scale:.1e}"


def one_code(module: Consumers, name: str) -> float:
    """The largest change of a row when one input moves by one step of its grid."""
    layers = (
        [module.low_rank.down, module.low_rank.up]
        if name == "low_rank"
        else [module.get_submodule(name)]
    )
    x = module.table(torch.arange(VOCABULARY))
    change = 0.0
    for layer in layers:
        step = float((x.amax() - x.amin()) / 255)
        weight = layer.weight
        change = change * float(torch.linalg.matrix_norm(weight, 2)) + step * float(
            weight.norm(dim=0).max()
        )
        x = layer(x)
    return change


def test_weights_are_stored_once_in_their_format(case):
    text, operators, module, report = case
    stored = list(stored_weights(module))
    assert report.formats.keys() == {weight.name for weight in stored}
    assert all(report.formats[weight.name] == str(weight.format) for weight in stored)
    counted = 0
    for weight in stored:
        rows, columns = (
            weight.codes.codes.shape if weight.codes is not None else (1, weight.values.numel())
        )
        product = weight.name in (*LINEAR, *TIED)
        padded = operators == "contrib" and product and text != "int8-dynamic"
        padded |= (
            weight.name in ("tied_table.weight", "codes.codes.weight") and operators == "contrib"
        )
        counted += weight.format.nbytes(rows, columns, padded=padded)
    plain = sum(p.numel() * p.element_size() for p in module.parameters())
    # shapes, slices, shifts and indices of blocks: a few numbers for each of 16 weights
    assert counted + plain <= report.parameter_bytes <= counted + plain + 16 * 400


def test_operators_are_those_that_were_asked_for(case):
    text, operators, _, report = case
    graph = onnx.load(report.path)
    domains = {node.domain for node in graph.graph.node}
    assert (domains == {"", "com.microsoft"}) == (
        operators == "contrib" and text not in ("fp16", "bf16")
    )
    blocked = isinstance(parse_format(text), GridFormat)
    assert report.opset == (21 if blocked else 20)
    assert any("opset 21" in note for note in report.notes) == blocked


def test_a_note_names_the_weights_and_what_reads_them(case):
    text, operators, _, report = case
    (note,) = (note for note in report.notes if note.startswith("weights in number formats: "))
    said = note.removeprefix("weights in number formats: ").split("; ")
    if text in ("fp16", "bf16"):
        assert said == [
            "Cast makes table.weight, tied_table.weight, query.weight and 13 more floats of the "
            "graph's precision when the file is opened: smaller, not faster"
        ]
        return
    assert said[-1].startswith("DequantizeLinear makes all of conv1.weight, conv2.weight, grouped.")
    assert said[-1].endswith("floats in every run: smaller, not faster")
    tables, tied = ("table.weight, tied_table.weight", "codes.codes.weight")
    if operators == "contrib":
        assert f"GatherBlockQuantized looks up rows of {tables}, {tied} and dequantises" in note
    else:
        assert f"Gather looks up rows of {tables}, {tied}, and only these rows" in note
    if text == "int8-dynamic":
        assert said[1].startswith(
            "DynamicQuantizeLinear and MatMulInteger multiply inputs that are"
        )
        assert said[1].endswith("query.weight, key.weight, classes.weight and 3 more")
    elif operators == "contrib":
        assert said[0] == (
            "MatMulNBits multiplies by the codes of tied_table.weight, query.weight, key.weight "
            "and 6 more"
        )
    else:
        assert said[0].startswith("DequantizeLinear and MatMul, which a session fuses to MatMulN")


def test_a_weight_in_the_precision_of_the_graph_needs_no_note(tmp_path):
    module = stored_network("fp16")
    report = export_onnx(module, IDS, tmp_path / "half.onnx", ExportOptions("fp16"))
    assert not any("number formats" in note for note in report.notes)
    assert "Cast" not in {
        node.op_type
        for node in onnx.load(report.path).graph.node
        if any("weight" in name for name in node.input)
    }


def test_no_weight_becomes_a_float_when_the_file_is_opened(case, tmp_path):
    text, _, module, report = case
    if text in ("fp16", "bf16"):
        return  # computed in the precision of the graph, once
    open_session(report.path, optimized_path=tmp_path / "optimised.onnx")
    optimised = onnx.load(tmp_path / "optimised.onnx")
    largest = max(
        (
            list(t.dims)
            for t in optimised.graph.initializer
            if t.data_type == onnx.TensorProto.FLOAT
        ),
        key=lambda dims: torch.Size(dims).numel(),
    )
    blocks = max(w.codes.grid.scales.numel() for w in stored_weights(module))
    assert torch.Size(largest).numel() <= blocks


def test_products_are_fused(case, tmp_path):
    text, _, _, report = case
    if text in ("fp16", "bf16"):
        return
    open_session(report.path, optimized_path=tmp_path / "optimised.onnx")
    nodes = Counter(n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node)
    heads = (
        2  # of the tied tables; the others are the linear layers and the embedding's second factor
    )
    if text == "int8-dynamic":
        assert nodes["MatMulIntegerToFloat"] + nodes["DynamicQuantizeMatMul"] == len(LINEAR)
        assert nodes["MatMulNBits"] == heads + 1
    else:
        assert nodes["MatMulNBits"] == len(LINEAR) + heads + 1


PRODUCTS = (*LINEAR, "codes.up.weight", *TIED)  # weights that products read


@pytest.mark.parametrize(
    ("text", "operators", "products", "by_kernels"),
    [
        ("int8", "contrib", "auto", False),
        ("int8", "contrib", "exact", False),
        ("int8", "contrib", "rounded", True),
        ("int4", "contrib", "auto", True),
        ("int4", "contrib", "exact", True),
        ("int4", "standard", "auto", True),
        ("int4", "standard", "exact", False),
    ],
)
def test_what_reads_the_weights_of_products(tmp_path, text, operators, products, by_kernels):
    module, report = exported(tmp_path, text, operators, products)
    open_session(report.path, optimized_path=tmp_path / "optimised.onnx")
    graph = onnx.load(tmp_path / "optimised.onnx").graph
    nodes = [node for node in graph.node if node.op_type == "MatMulNBits"]
    floats = {tuple(t.dims) for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT}
    shapes = {weight.name: tuple(weight.shape) for weight in stored_weights(module)}
    transposed = {shapes[name][::-1] for name in PRODUCTS}
    if by_kernels:
        assert len(nodes) == len(PRODUCTS)
        level = 1 if products == "exact" else 4
        assert {a.i for n in nodes for a in n.attribute if a.name == "accuracy_level"} == {level}
    else:
        assert not nodes
        assert transposed <= floats
    assert not transposed & floats or not by_kernels


def test_only_a_cpu_has_a_choice_of_products(tmp_path):
    module = stored_network("int8")
    report = export_onnx(module, IDS, tmp_path / "x.onnx", ExportOptions(provider="cuda"))
    assert report.node_counts["MatMulNBits"] == len(PRODUCTS)


def test_layers_with_the_same_input_share_its_rounding(tmp_path):
    _, report = exported(tmp_path, "int8-dynamic", "contrib", "auto")
    # query, key and the first factor read the same; classes, pooled and the second factor do not
    assert report.node_counts["DynamicQuantizeLinear"] == 4


def test_half_precision_computes_with_the_same_codes(tmp_path):
    module = stored_network("int4")
    report = export_onnx(
        module, IDS, tmp_path / "half.onnx", ExportOptions("fp16", products="exact")
    )
    got, wanted = ran(report.path, IDS["input_ids"], module), module(**IDS)
    for name, value in wanted.items():
        scale = float(value.flatten(0, -2).norm(dim=-1).square().mean().sqrt())
        error = float((got[name] - value).flatten(0, -2).norm(dim=-1).max())
        # weights and activations are rounded to float16, in two products or one
        assert error <= 4 * tolerance("fp16", 2, 120) * scale, name


def test_a_format_without_a_kernel_is_refused(tmp_path):
    module = stored_network("int8-dynamic")
    with pytest.raises(
        ExportError, match=r"query\.weight.*int8-dynamic has no kernel on cuda; plan"
    ):
        export_onnx(module, IDS, tmp_path / "x.onnx", ExportOptions(provider="cuda"))
    assert not (tmp_path / "x.onnx").exists()


@pytest.mark.parametrize("provider", ["cuda", "tensorrt"])
@pytest.mark.parametrize("text", ["int8", "int4", "uint4", "int2", "fp16"])
def test_standard_graphs_for_a_gpu_have_its_kernels_and_compute_the_same(text, provider, tmp_path):
    module = stored_network(text)
    options = ExportOptions(operators="standard", provider=provider)
    if provider not in parse_format(text).providers:
        with pytest.raises(
            ExportError, match=rf"{text}/32 has no kernel on {provider}; plan again"
        ):
            export_onnx(module, IDS, tmp_path / "x.onnx", options)
        return
    report = export_onnx(module, IDS, tmp_path / "x.onnx", options)
    graph = onnx.load(report.path)
    assert {node.domain for node in graph.graph.node} == {""}
    assert missing_kernels(graph, "fp32") == ()
    ids = torch.tensor([[3, 1, 4], [1, 5, 9]])
    got, wanted = ran(report.path, ids, module, rounds=False), module(ids)
    for name, value in wanted.items():
        rows = value.double().flatten(0, -2)
        scale = float(rows.square().sum(-1).mean().sqrt())
        error = float((got[name].double().flatten(0, -2) - rows).norm(dim=-1).max())
        assert error <= FLOAT32 * scale, name
    # Stored once: the codes and their scales, as on a CPU
    on_cpu = export_onnx(
        module, IDS, tmp_path / "cpu.onnx", ExportOptions(operators="standard")
    ).parameter_bytes
    assert report.parameter_bytes <= on_cpu + 16 * 400


def test_the_reading_operators_suit_the_provider(tmp_path):
    module = stored_network("int4")
    found = {}
    for provider in ("cpu", "cuda", "tensorrt"):
        path = tmp_path / f"{provider}.onnx"
        export_onnx(module, IDS, path, ExportOptions(provider=provider))
        found[provider] = {node.domain for node in onnx.load(path).graph.node}
    assert found["cpu"] == found["cuda"] == {"", "com.microsoft"}
    assert found["tensorrt"] == {""}
    with pytest.raises(ExportError, match=r"^operators contrib: TensorRT .*; use --operators st"):
        ExportOptions(provider="tensorrt", operators="contrib")


def test_a_higher_opset_is_kept(tmp_path):
    module = nn.Sequential(nn.Linear(40, 8)).eval()
    store_(module, "0.weight", "int4")
    batch = {"input": torch.randn(2, 40)}
    report = export_onnx(module, batch, tmp_path / "x.onnx", ExportOptions(opset=22))
    assert report.opset == 22
    assert not any("opset" in note for note in report.notes)


def test_the_network_keeps_its_codes(tmp_path):
    module, _ = exported(tmp_path, "int4", "contrib", "auto")
    before = module(**IDS)
    assert len(list(stored_weights(module))) == len(LINEAR) + len(OTHERS)
    after = module(**IDS)
    assert all(torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("text", ["int4", "int8-dynamic", "fp16"])
def test_a_pt2_program_keeps_the_codes_and_computes_the_same(text, tmp_path):
    module = stored_network(text)
    save_pt2(module, IDS, tmp_path / "x.pt2")
    program = torch.export.load(tmp_path / "x.pt2")
    ids = torch.arange(10).reshape(2, 5)
    for name, value in program.module()(input_ids=ids).items():
        assert torch.equal(value, module(ids)[name]), name
    kept = torch.float16 if text == "fp16" else torch.uint8
    stored = [
        tensor
        for name, tensor in program.state_dict.items()
        if name.endswith(("weight.original0", "weight.original"))
    ]
    assert stored
    assert all(tensor.dtype == kept for tensor in stored)
