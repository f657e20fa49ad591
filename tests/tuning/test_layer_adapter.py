"""Claims of adapters beside a whole layer: truncated back to its rank in its metric, and told."""

from __future__ import annotations

import copy

import pytest
import torch
from adapted_networks import STEPS, assert_close, mixed, outputs, perturb_, snapshot, train_
from random_moments import random_moments
from structure_cases import KINDS, Case, Host
from torch import Tensor, nn

from lrcompress.compression.replace import install_
from lrcompress.errors import TuneError
from lrcompress.layers import LayerSpec, describe, weight_matrix
from lrcompress.metrics import METRICS, Whitening
from lrcompress.structures import LowRank
from lrcompress.tuning.adapters import ADAPTERS, Adapter, AdapterOptions

RANK, ADDED = 2, 2
BESIDE = AdapterOptions(rank=ADDED, alpha=3.0, place="layer")

every_kind = pytest.mark.parametrize(
    "case", [pytest.param(case, id=kind) for kind, case in KINDS.items() if not case.tied]
)
every_scaling = pytest.mark.parametrize("name", ["lora", "rslora"])


def factorised(case: Case, dtype: torch.dtype = torch.float64) -> tuple[Host, LayerSpec]:
    host = case.host(dtype)
    (spec,) = describe(host).layers
    factors = LowRank(RANK).fit(weight_matrix(host.layer), Whitening(), spec)
    bias = getattr(host.layer, "bias", None)
    install_(host, spec, LowRank(RANK), factors, None if bias is None else bias.detach())
    return host, spec


def placed(host: Host, name: str = "lora") -> Adapter:
    adapter = ADAPTERS[name](BESIDE)
    adapter.attach_(host, ["layer"], total_steps=STEPS, seed=0)
    return adapter


def matrix(layer: nn.Module, spec: LayerSpec) -> Tensor:
    """(groups, m, n) of what a layer computes."""
    weight = layer.weight.detach().double()
    if spec.kind == "embedding":
        return weight.mT[None]
    return weight.reshape(spec.groups, spec.out_features, spec.in_features)


def sum_of(host: Host, spec: LayerSpec) -> Tensor:
    """What the layer and the adapter beside it compute together."""
    beside = host.layer
    return matrix(beside.layer, spec) + beside.scaling * matrix(beside.update, spec)


@every_kind
@every_scaling
def test_adapters_that_were_not_trained_change_no_bit(name: str, case: Case) -> None:
    host, _ = factorised(case)
    x = {"x": case.inputs()}
    before, expected, state = snapshot(host), outputs(host, x), copy.deepcopy(host.state_dict())
    adapter = placed(host, name)
    assert torch.equal(outputs(host, x), expected)
    report = adapter.merge_({})
    assert report.loss == 0
    assert snapshot(host) == before
    assert all(torch.equal(value, state[key]) for key, value in host.state_dict().items())


@every_kind
@pytest.mark.parametrize("metric", METRICS)
def test_merging_is_the_best_of_its_rank_and_tells_its_loss(case: Case, metric: str) -> None:
    host, spec = factorised(case)
    before = snapshot(host)
    whitening = METRICS[metric].whitening(random_moments(spec), shrinkage=0.01)
    adapter = placed(host)
    perturb_(host)
    trained = sum_of(host, spec)
    start = matrix(host.layer.layer, spec)
    (row,) = adapter.merge_({"layer": whitening}).layers
    assert snapshot(host) == before
    merged = matrix(host.layer, spec)
    best = LowRank(RANK).fit(trained, whitening, spec)
    tolerance = 1e-9 * float(whitening.loss(trained))
    lost = float(whitening.loss(trained - merged))
    assert row.loss == pytest.approx(lost, abs=tolerance)
    expected = float(whitening.loss(trained - best["left"] @ best["right"]))
    assert row.loss == pytest.approx(expected, abs=tolerance)
    assert row.update == pytest.approx(float(whitening.loss(trained - start)), abs=tolerance)
    assert 0 < row.loss < row.update


@every_kind
@every_scaling
def test_the_network_computes_the_sum_until_it_is_merged(name: str, case: Case) -> None:
    host, spec = factorised(case)
    x = {"x": case.inputs()}
    adapter = placed(host, name)
    perturb_(host)
    computed, whole = outputs(host, x), sum_of(host, spec)
    dense = case.host()
    shaped = whole[0].mT if spec.kind in ("embedding", "transposed_linear") else whole
    with torch.no_grad():
        dense.layer.weight.copy_(shaped.reshape(dense.layer.weight.shape))
    assert_close(computed, outputs(dense, x))
    adapter.merge_({})


def test_an_update_that_needs_no_more_rank_is_merged_exactly() -> None:
    host, spec = factorised(KINDS["linear"])
    x = {"x": KINDS["linear"].inputs()}
    adapter = placed(host)
    beside = host.layer
    with torch.no_grad():  # within the row and column space that the layer has
        beside.update.up.weight.copy_(beside.layer.up.weight[:, :ADDED])
        beside.update.down.weight.copy_(beside.layer.down.weight[-ADDED:])
    trained, size = outputs(host, x), float(sum_of(host, spec).square().sum())
    report = adapter.merge_({})
    assert report.layers[0].update > 0.01
    # half the sum of squares of values that are rounding errors of the largest one
    assert report.loss < (100 * torch.finfo(torch.float64).eps) ** 2 * size
    assert_close(outputs(host, x), trained)


def test_only_the_update_trains() -> None:
    host, _ = factorised(KINDS["conv2d grouped"])
    kept = {name: p.detach().clone() for name, p in host.named_parameters()}
    adapter = placed(host)
    train_(adapter, host, {"x": KINDS["conv2d grouped"].inputs()}, STEPS)
    for name, value in kept.items():
        assert torch.equal(host.get_parameter(name.replace("layer.", "layer.layer.")), value)
    assert all(".update." in n for n, p in host.named_parameters() if p.requires_grad)


def test_tokens_that_no_text_has_keep_their_rows() -> None:
    host, _ = factorised(KINDS["embedding"])
    adapter = placed(host)
    before = host.layer.weight.detach().clone()
    tokens = torch.tensor([[1, 2, 3]])
    train_(adapter, host, {"x": tokens}, STEPS)
    every = {"x": torch.arange(len(before))}
    changed = (outputs(host, every) - before).abs().amax(1) > 0
    assert changed.nonzero().flatten().tolist() == [1, 2, 3]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_layers_get_updates_of_single(dtype: torch.dtype) -> None:
    host, _ = factorised(KINDS["linear"], dtype)
    x = {"x": KINDS["linear"].inputs(dtype)}
    adapter = placed(host)
    assert {p.dtype for p in host.layer.update.parameters()} == {torch.float32}
    perturb_(host)
    assert outputs(host, x).dtype is dtype
    adapter.merge_({})
    assert {p.dtype for p in host.parameters()} == {dtype}


def test_sizes_may_be_asked_through_the_adapter() -> None:
    host, _ = factorised(KINDS["conv2d strided"])
    placed(host)
    assert (host.layer.out_channels, host.layer.stride) == (6, (2, 1))
    with pytest.raises(AttributeError):
        _ = host.layer.nothing


def test_updates_that_are_not_finite_are_refused_and_stay() -> None:
    host, _ = factorised(KINDS["linear"])
    adapter = placed(host)
    perturb_(host)
    with torch.no_grad():
        host.layer.update.down.weight[0, 0] = torch.inf
    before = snapshot(host)
    with pytest.raises(TuneError, match=r"layer: its adapter .* is not finite"):
        adapter.merge_({})
    assert snapshot(host) == before


def test_other_structures_and_larger_ranks_are_refused() -> None:
    module, _ = mixed()
    before = snapshot(module)
    adapter = ADAPTERS["lora"](BESIDE)
    with pytest.raises(TuneError, match="blast: BlastLinear is not one product of two factors"):
        adapter.attach_(module, ["low_rank", "blast"], total_steps=STEPS, seed=0)
    adapter = ADAPTERS["lora"](AdapterOptions(rank=9, place="layer"))
    with pytest.raises(TuneError, match=r"low_rank: an adapter of rank 9 .* above 8"):
        adapter.attach_(module, ["low_rank"], total_steps=STEPS, seed=0)
    assert snapshot(module) == before
