"""Claims of profiling: moments are those of the data, sensitivities those of the network."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import networks
import pytest
import tiny_models
import torch
from drawn_outputs import drawn_outputs
from networks import Function, feature_batches, token_batches
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from lrcompress.errors import DataError, ModelError
from lrcompress.layers import output_rows, weight_matrix
from lrcompress.metrics import METRICS, LayerMoments
from lrcompress.network.batches import Batch, token_count
from lrcompress.network.objectives import OBJECTIVES, smoothing
from lrcompress.network.readout import choose_readout
from lrcompress.profiling import unseen_classes as unseen
from lrcompress.profiling.gauss_newton_factors import GaussNewtonFactors
from lrcompress.profiling.layer_moments import nearest_kronecker
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import SMALLEST_CORRECTION, Profile
from lrcompress.profiling.profiler import profile
from lrcompress.profiling.second_moment import SymmetricSum
from lrcompress.profiling.trials import (
    AFFORDABLE_FLOPS,
    EXAMPLES,
    MOST_EXAMPLES,
    SHARES,
    affordable_trials,
)

# Products in float32 over one batch (2^-24 each, a few hundred terms), relative to the largest.
FP32 = 2e-5


def assert_same(one: Tensor, other: Tensor, tolerance: float = FP32) -> None:
    """Equal up to `tolerance` of the largest entry."""
    scale = float(other.abs().max()) + 1e-30
    torch.testing.assert_close(one.double(), other.double(), rtol=0, atol=tolerance * scale)


def assert_same_moments(one: LayerMoments, other: LayerMoments, tolerance: float = FP32) -> None:
    assert (one.rows, one.examples) == (other.rows, other.examples)
    for part in ("input", "input_mean", "input_abs_mean"):
        assert_same(getattr(one, part), getattr(other, part), tolerance)
    assert (one.sensitivity is None) == (other.sensitivity is None)
    for part in ("input", "output", "cross", "bias"):
        first, second = getattr(one.sensitivity, part, None), getattr(other.sensitivity, part, None)
        assert (first is None) == (second is None)
        if first is not None:
            assert_same(first, second, tolerance)


# --- objectives -------------------------------------------------------------------------------

OF_ANY_OUTPUT = [name for name in OBJECTIVES if "probabilities" not in name]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_probes_have_the_second_moment_of_the_divergences_hessian(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smoothing, "SMOOTHING", 0.0)  # the Hessian at the output itself
    objective = OBJECTIVES[name]
    dense = drawn_outputs(name, 5, seed=1)
    one = torch.ones(1)
    hessian = torch.autograd.functional.hessian(
        lambda other: objective.divergence(dense[None], other[None], one).sum(), dense.clone()
    )
    draws = 20_000
    generator = torch.Generator().manual_seed(0)
    v = objective.probe(dense.expand(draws, 5), torch.ones(draws), generator).double()
    if name == "probabilities":  # they change with their sum kept, and only that is seen
        centre = torch.eye(5) - 1 / 5
        hessian, v = centre @ hessian @ centre, v @ centre.double()
    products = v.unsqueeze(-1) * v.unsqueeze(-2)
    error = (products.mean(0) - hessian).abs()
    # Five standard errors of a mean of `draws` products, and float32 in the Hessian itself
    assert bool((error <= 5 * products.std(0) / draws**0.5 + 1e-5).all())


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_divergence_and_its_gradient_vanish_where_nothing_changed(name: str) -> None:
    dense = drawn_outputs(name, 3, 4, 5, seed=1)
    other = dense.clone().requires_grad_()
    divergence = OBJECTIVES[name].divergence(dense, other, torch.ones(3, 4))
    assert divergence.shape == (3,)
    assert float(divergence.detach().abs().max()) <= 1e-5
    (gradient,) = torch.autograd.grad(divergence.sum(), other)
    assert float(gradient.abs().max()) <= 1e-6
    moved = drawn_outputs(name, 3, 4, 5, seed=2)
    moved = OBJECTIVES[name].divergence(dense, moved, torch.ones(3, 4))
    assert bool((moved > 0).all())


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("shape", [(3, 5), (3, 4, 5), (3, 2, 2, 5)], ids=str)
def test_positions_of_no_weight_neither_diverge_nor_probe(
    name: str, shape: tuple[int, ...]
) -> None:
    dense, other = (drawn_outputs(name, *shape, seed=seed) for seed in (1, 2))
    weights = torch.ones(shape[:-1])
    weights[0] = 0
    divergence = OBJECTIVES[name].divergence(dense, other, weights)
    assert float(divergence[0]) == 0
    assert bool((divergence[1:] > 0).all())
    probe = OBJECTIVES[name].probe(dense, weights, torch.Generator().manual_seed(0))
    assert probe.shape == dense.shape
    assert float(probe[0].abs().max()) == 0


# --- sensitivities against gradients taken one by one --------------------------------------------


@dataclass
class Explicit:
    """Sums over probes and examples of J^T J, J^T j, j^T j and g g^T, by autograd."""

    input: Tensor
    mean: Tensor
    bias: Tensor
    output: Tensor


def explicit(
    module: nn.Module, name: str, batches: Sequence[Batch], found: Profile, probes: int, seed: int
) -> Explicit:
    """The Gauss-Newton gradient of every example and probe, each taken whole, in float64."""
    module = copy.deepcopy(module).double().eval()
    if isinstance(module, networks.InPlaceResidual):
        module.in_place = False  # autograd refuses what only a network without gradients may do
    layer = module.get_submodule(name)
    outputs_of_layer: list[Tensor] = []

    def keep(_: nn.Module, __: object, y: Tensor) -> Tensor:
        outputs_of_layer.append(y)
        return y.clone()  # so that y itself is not changed in place

    layer.register_forward_hook(keep)
    m, n = weight_matrix(layer).shape[1:]
    groups = weight_matrix(layer).shape[0]
    zero = torch.zeros(groups, 1, 1, dtype=torch.float64)
    total = Explicit(
        zero.expand(-1, n, n).clone(),
        zero[..., 0].expand(-1, n).clone(),
        zero[:, 0, 0].clone(),
        zero.expand(-1, m, m).clone(),
    )
    for index, batch in enumerate(batches):
        outputs_of_layer.clear()
        raw = module(**{k: v.double() if v.is_floating_point() else v for k, v in batch.items()})
        readout, _ = choose_readout(raw, objective=found.objective)
        outputs, weights = readout(raw, batch)
        generator = torch.Generator().manual_seed(seed + 7919 * index)
        for _ in range(probes):
            v = readout.objective.probe(outputs.detach().float(), weights.float(), generator)
            for e in range(len(outputs)):
                wanted = [layer.weight, *outputs_of_layer]
                if found[name].spec.bias:
                    wanted.append(layer.bias)
                gradients = torch.autograd.grad(
                    (outputs[e] * v[e]).sum(), wanted, retain_graph=True
                )
                stand_in = copy.deepcopy(layer)
                stand_in.weight.data = gradients[0]
                whole = weight_matrix(stand_in)  # (g, m, n)
                total.input += whole.mT @ whole
                for y in gradients[1 : 1 + len(outputs_of_layer)]:
                    rows = output_rows(layer, y).reshape(len(outputs), -1, groups, m)[e]
                    total.output += torch.einsum("tgi,tgj->gij", rows, rows)
                if found[name].spec.bias:
                    j = gradients[-1].reshape(groups, m)
                    total.mean += torch.einsum("gmn,gm->gn", whole, j)
                    total.bias += j.square().sum(1)
    return total


def _full(moment: Tensor) -> Tensor:
    return torch.diag_embed(moment) if moment.dim() == 2 else moment


IMAGES = feature_batches(2, 3, 2, 5, 5)
NETWORKS: dict[str, tuple[Callable[[], nn.Module], list[Batch], list[str]]] = {
    "features": (networks.Mlp, feature_batches(2, 4, 6), ["first", "second"]),
    "many tokens": (networks.Mlp, feature_batches(2, 3, 9, 6), ["first", "second"]),
    "padded tokens": (
        lambda: networks.Attention(tied=False),
        token_batches(2, 3, 6),
        ["embedding", "query", "value", "gate", "down", "head"],
    ),
    "convolutions changed in place": (
        networks.InPlaceConvNet,
        IMAGES,
        ["first", "second", "head"],
    ),
    "input changed in place": (
        networks.InPlaceResidual,
        feature_batches(2, 3, 4, 5),
        ["first", "second"],
    ),
    "called twice": (networks.Twice, feature_batches(2, 3, 4, 5), ["shared"]),
    "flattened positions": (
        lambda: Function(nn.Linear(5, 4), lambda f, x: f(x.flatten(0, 1)).unflatten(0, (3, 4))),
        feature_batches(2, 3, 4, 5),
        ["layer"],
    ),
    "called by keyword": (
        lambda: Function(nn.Linear(5, 4), lambda f, x: f(input=x)),
        feature_batches(2, 3, 5),
        ["layer"],
    ),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("objective", OF_ANY_OUTPUT)
def test_sensitivities_are_those_of_whole_example_gradients(
    name: str, objective: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unseen, "SHARE", 0.0)  # no prior for classes that are not seen
    make, batches, layers = NETWORKS[name]
    torch.manual_seed(0)
    module = make().eval()
    probes, seed = 2, 5
    found = profile(module, batches, ProfileOptions(objective=objective, probes=probes, seed=seed))
    for layer in layers:
        expected = explicit(module, layer, batches, found, probes, seed)
        sensitivity = found.moments[layer].sensitivity
        assert sensitivity is not None
        draws = found.examples * probes
        wanted = expected.input / draws
        if sensitivity.input.dim() == 2:
            wanted = torch.diag_embed(wanted.diagonal(dim1=-2, dim2=-1))
        assert_same(_full(sensitivity.input), wanted)
        traces = expected.output.diagonal(dim1=-2, dim2=-1).sum(-1)[:, None, None]
        assert_same(_full(sensitivity.output), expected.output / traces)
        if found[layer].spec.bias:
            assert sensitivity.bias is not None
            assert sensitivity.cross is not None
            assert_same(sensitivity.bias, expected.bias / draws)
            assert_same(sensitivity.cross, expected.mean / draws)


@pytest.mark.parametrize("full_limit", [100, 6, 3])
def test_few_positions_and_many_are_summed_alike(full_limit: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x, gradient = (torch.randn(4, 3, 2, k, generator=generator) for k in (7, 5))
    few, many = GaussNewtonFactors(), GaussNewtonFactors()
    few.add(x, gradient, full_limit=full_limit)
    padding = torch.zeros(4, 20, 2, 1)  # rows of zero change no sum, but the way to it
    many.add(
        torch.cat([x, padding.expand(-1, -1, -1, 7)], 1),
        torch.cat([gradient, padding.expand(-1, -1, -1, 5)], 1),
        full_limit=full_limit,
    )
    one, other = few.finish(4, 1), many.finish(4, 1)
    for part in ("input", "output", "cross", "bias"):
        assert_same(getattr(one, part), getattr(other, part))


@pytest.mark.parametrize("features", [3, 256, 600])
def test_a_symmetric_sum_is_the_sum_of_products(features: int) -> None:
    generator = torch.Generator().manual_seed(0)
    terms = [torch.randn(2, 5, features, generator=generator) for _ in range(3)]
    total = SymmetricSum(2, features, torch.device("cpu"))
    for done, term in enumerate(terms, 1):
        total.add(term, term)
        expected = sum(t.double().mT @ t.double() for t in terms[:done])
        # float32 products of five terms of order one
        torch.testing.assert_close(total.whole(), expected, rtol=1e-6, atol=1e-5)


def test_a_lookup_is_a_product_with_one_hot_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(4, (3, 6), generator=generator)  # repeated within examples
    gradient = torch.randn(3, 6, 1, 5, generator=generator)
    lookup, product = GaussNewtonFactors(), GaussNewtonFactors()
    lookup.add_tokens(tokens, gradient, 4)
    onehot = nn.functional.one_hot(tokens, 4).float().unsqueeze(2)
    product.add(onehot, gradient, full_limit=100)
    one, other = lookup.finish(3, 1), product.finish(3, 1)
    assert one is not None
    assert other is not None
    assert_same(one.input, other.input.diagonal(dim1=-2, dim2=-1))
    assert_same(one.output, other.output)


@pytest.mark.parametrize("terms", [1, 2, 3])
def test_the_nearest_kronecker_product_is_the_leading_pair_of_the_rearranged_sum(
    terms: int,
) -> None:
    generator = torch.Generator().manual_seed(terms)

    def moment(k: int) -> Tensor:
        x = torch.randn(1, k + 2, k, generator=generator, dtype=torch.float64)
        return x.mT @ x

    pairs = [(moment(4), moment(3)) for _ in range(terms)]
    c, g = nearest_kronecker(pairs)
    rearranged = sum(torch.outer(a.flatten(), b.flatten()) for a, b in pairs)
    u, s, vt = torch.linalg.svd(rearranged)
    best = s[0] * torch.outer(u[:, 0], vt[0])
    # Power iteration: 200 steps of (s2 / s1)^2
    torch.testing.assert_close(torch.outer(c.flatten(), g.flatten()), best, rtol=1e-8, atol=1e-8)


def test_a_tied_weight_feels_both_of_its_uses() -> None:
    torch.manual_seed(0)
    module, batches = networks.Attention(tied=True).eval(), token_batches(2, 3, 6)
    found = profile(module, batches, ProfileOptions(probes=2))
    (row,) = [layer for layer in found.layers if layer.spec.tied]
    sensitivity = found.moments[row.name].sensitivity
    assert sensitivity is not None
    apart = profile(_untied(module), batches, ProfileOptions(probes=2))
    trace = 0.0
    for name in ("embedding", "head"):
        own = apart.moments[name].sensitivity
        assert own is not None
        trace += float(_full(own.input).diagonal(dim1=-2, dim2=-1).sum())
    # tr(C (x) G) of the sum is the sum of both; the nearest product keeps most of it
    tied = float(_full(sensitivity.input).diagonal(dim1=-2, dim2=-1).sum())
    assert 0.5 * trace < tied <= trace * 1.001
    for metric in METRICS:
        assert bool(torch.isfinite(row.spectra[metric]).all())


def _untied(module: networks.Attention) -> networks.Attention:
    other = copy.deepcopy(module)
    other.head.weight = nn.Parameter(other.head.weight.detach().clone())
    return other


# --- input moments -----------------------------------------------------------------------------


def test_input_moments_are_those_of_the_unpadded_rows() -> None:
    torch.manual_seed(0)
    module, batches = networks.Attention(tied=False).eval(), token_batches(3, 4, 6)
    found = profile(module, batches)
    rows = []
    for batch in batches:
        h = module.norm(module.embedding(batch["input_ids"])).detach().double()
        rows.append(h[batch["attention_mask"].bool()])
    x = torch.cat(rows)
    moments = found.moments["query"]
    assert (moments.rows, moments.examples) == (len(x), 12)
    assert found.tokens == len(x)
    assert found["query"].rows_per_example == len(x) / 12
    assert_same(moments.input[0], x.mT @ x / 12)
    assert_same(moments.input_mean[0], x.mean(0))
    assert_same(moments.input_abs_mean[0], x.abs().mean(0))
    tokens = torch.cat([b["input_ids"][b["attention_mask"].bool()] for b in batches])
    counts = torch.bincount(tokens, minlength=networks.VOCABULARY).double()
    assert_same(found.moments["embedding"].input[0], counts / 12)


def _poisoned(batches: Sequence[Batch]) -> list[Batch]:
    """The same batches with other tokens, or huge values, where the mask is 0."""
    generator = torch.Generator().manual_seed(9)
    made = []
    for batch in batches:
        padding = batch["attention_mask"] == 0
        changed = dict(batch)
        if "input_ids" in batch:
            other = torch.randint(1, networks.VOCABULARY, padding.shape, generator=generator)
            changed["input_ids"] = torch.where(padding, other, batch["input_ids"])
        else:
            changed["x"] = torch.where(padding.unsqueeze(-1), 1e6, batch["x"])
        made.append(changed)
    return made


class MaskedFeatures(nn.Module):
    """Features per position, each position on its own."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 3)

    def forward(self, x: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        return {"last_hidden_state": self.second(torch.tanh(self.first(x)))}


class PositionsFirst(MaskedFeatures):
    """The same, computed with positions before examples."""

    def forward(self, x: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        hidden = self.second(torch.tanh(self.first(x.transpose(0, 1))))
        return {"last_hidden_state": hidden.transpose(0, 1)}


def _masked_features() -> list[Batch]:
    features = feature_batches(2, 3, 6, 4)
    masks = token_batches(2, 3, 6)
    return [
        {"x": f["x"], "attention_mask": t["attention_mask"]}
        for f, t in zip(features, masks, strict=True)
    ]


@pytest.mark.parametrize(
    ("make", "batches"),
    [
        (networks.Attention, token_batches(2, 3, 6)),
        (MaskedFeatures, _masked_features()),
        (PositionsFirst, _masked_features()),
        (tiny_models.bert, token_batches(2, 3, 6)),
        (tiny_models.llama, token_batches(2, 3, 6)),
    ],
    ids=["attention", "features", "positions first", "bert", "llama"],
)
@pytest.mark.parametrize("pooling", [None, "mean"])
def test_padding_enters_no_moment(
    make: Callable[[], nn.Module], batches: list[Batch], pooling: str | None
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    options = ProfileOptions(pooling=pooling)
    clean, poisoned = (profile(module, b, options) for b in (batches, _poisoned(batches)))
    assert [layer.name for layer in clean.layers] == [layer.name for layer in poisoned.layers]
    for layer in clean.layers:
        one, other = clean.moments[layer.name], poisoned.moments[layer.name]
        assert_same_moments(one, other, tolerance=1e-6)


def test_positions_before_examples_are_the_same_rows() -> None:
    torch.manual_seed(0)
    module, batches = MaskedFeatures(), _masked_features()
    other = PositionsFirst()
    other.load_state_dict(module.state_dict())
    one, two = profile(module, batches), profile(other, batches)
    for name in ("first", "second"):
        assert_same_moments(one.moments[name], two.moments[name])


def test_layers_of_one_input_share_its_moment_and_no_others_do() -> None:
    torch.manual_seed(0)
    found = profile(networks.Attention(tied=False).eval(), token_batches(2, 3, 6))
    groups: dict[str, set[str]] = {}
    for layer in found.layers:
        groups.setdefault(layer.input_group, set()).add(layer.name)
    assert groups == {
        "embedding": {"embedding"},
        "query": {"query", "key", "value"},
        "out": {"out"},
        "gate": {"gate", "up"},
        "down": {"down"},
        "head": {"head"},
    }
    query, key = found.moments["query"], found.moments["key"]
    assert query.input is key.input  # held once
    assert query.sensitivity is not key.sensitivity


def test_equal_values_in_different_tensors_are_not_taken_for_one_input() -> None:
    module = nn.ModuleDict({"a": nn.Linear(5, 4), "b": nn.Linear(5, 4)})
    network = Function(module, lambda f, x: f["a"](x * 1) + f["b"](x * 1))
    found = profile(network, feature_batches(2, 3, 5))
    assert [layer.input_group for layer in found.layers] == ["layer.a", "layer.b"]


@pytest.mark.parametrize("metric", ["input-weighted", "two-sided"])
def test_an_input_overwritten_between_two_reads_is_two_inputs(metric: str) -> None:
    module = nn.ModuleDict({"a": nn.Linear(5, 4), "b": nn.Linear(5, 4)})

    def forward(f: nn.Module, x: Tensor) -> Tensor:
        x = x.clone()
        y = f["a"](x)
        x.mul_(2)
        return y + f["b"](x)

    options = ProfileOptions(metric=metric)
    found = profile(Function(module, forward), feature_batches(2, 3, 5), options)
    a, b = found.moments["layer.a"], found.moments["layer.b"]
    assert_same(b.input, 4 * a.input)
    if metric == "two-sided":
        assert a.sensitivity is not None
        assert b.sensitivity is not None
        assert_same(b.sensitivity.input, 4 * a.sensitivity.input)


def test_a_network_that_changes_its_path_is_profiled_without_sharing() -> None:
    torch.manual_seed(0)
    module = networks.ChangesPath().eval()
    batches = feature_batches(2, 3, 5)
    for index, batch in enumerate(batches):
        batch["is_first"] = torch.full((3,), index == 0)
    found = profile(module, batches)
    assert [layer.input_group for layer in found.layers] == ["first", "other"]
    x = [batch["x"].double() for batch in batches]
    read = torch.cat([x[0], torch.tanh(module.first(batches[1]["x"])).detach().double()])
    assert_same(found.moments["first"].input[0], torch.cat(x).mT @ torch.cat(x) / 6)
    assert_same(found.moments["other"].input[0], read.mT @ read / 6)


def test_a_layer_that_reads_only_the_first_of_anothers_inputs_has_its_own_moment() -> None:
    module = nn.ModuleDict({"often": nn.Linear(5, 5), "once": nn.Linear(5, 5)})
    network = Function(module, lambda f, x: f["often"](f["often"](x).tanh()) + f["once"](x))
    (batch,) = feature_batches(1, 4, 5)
    found = profile(network, [batch])
    x = batch["x"].double()
    assert found.moments["layer.once"].rows == 4
    assert found.moments["layer.often"].rows == 8
    assert_same(found.moments["layer.once"].input[0], x.mT @ x / 4)


@pytest.mark.parametrize("max_memory", [1, 3000])
def test_little_memory_gives_the_same_moments_in_more_passes(max_memory: int) -> None:
    torch.manual_seed(0)
    module, batches = networks.Attention().eval(), token_batches(2, 3, 6)
    once = profile(module, batches)
    stages: list[str] = []
    chunked = profile(
        module, batches, ProfileOptions(max_memory=max_memory), progress=Recorded(stages)
    )
    assert sum(name.startswith("moments") for name in stages) > 1
    assert [layer.name for layer in once.layers] == [layer.name for layer in chunked.layers]
    for layer in once.layers:
        assert_same_moments(chunked.moments[layer.name], once.moments[layer.name])
        for metric, spectrum in layer.spectra.items():
            assert_same(chunked[layer.name].spectra[metric], spectrum, tolerance=1e-4)


class Recorded:
    """A progress that keeps the names of the stages."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def stage(self, name: str, total: int) -> object:
        from lrcompress.progress import SILENT

        self.names.append(name)
        return SILENT.stage(name, total)


def test_little_memory_and_an_unreached_layer_go_together() -> None:
    module = networks.Unreached()
    options = ProfileOptions(max_memory=1, outputs=("logits",))
    found = profile(module, feature_batches(2, 3, 5), options)
    assert [layer.name for layer in found.layers] == ["used"]
    assert {left.name for left in found.left_alone} == {"never_called", "not_measured"}


# --- the network and the caller are left in peace ------------------------------------------------


class Normed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.norm = nn.BatchNorm1d(6)
        self.drop = nn.Dropout(0.5)
        self.second = nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(self.drop(self.norm(self.first(x))))
        return out


@pytest.mark.parametrize("metric", METRICS)
def test_the_module_is_left_as_it_was(metric: str) -> None:
    module = Normed().train()
    module.drop.eval()
    module.first.bias.requires_grad_(requires_grad=False)
    before = copy.deepcopy(module)
    random_state = torch.get_rng_state()
    profile(module, feature_batches(2, 3, 5), ProfileOptions(metric=metric))
    assert torch.equal(torch.get_rng_state(), random_state)
    assert {n: m.training for n, m in module.named_modules()} == {
        n: m.training for n, m in before.named_modules()
    }
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == before.get_parameter(name).requires_grad
        assert parameter.grad is None
    for name, value in module.state_dict().items():
        assert torch.equal(value, before.state_dict()[name])
    for m in module.modules():
        assert not m._forward_hooks
        assert not m._forward_pre_hooks
        assert not m._backward_hooks


def test_a_failed_profile_leaves_the_module_as_it_was_too() -> None:
    module = Normed().train()
    with pytest.raises(DataError):
        profile(module, [*feature_batches(1, 3, 5), *feature_batches(1, 3, 4)])
    assert module.training
    assert all(p.requires_grad for p in module.parameters())
    assert not any(m._forward_hooks for m in module.modules())


def test_the_same_seed_gives_the_same_profile_and_another_seed_another() -> None:
    module, batches = networks.Mlp(), feature_batches(2, 3, 6)
    one, same, other = (
        profile(module, batches, ProfileOptions(seed=seed))["first"].spectra["two-sided"]
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_gradients_are_found_where_the_caller_has_turned_them_off() -> None:
    module, batches = networks.Mlp(), feature_batches(2, 3, 6)
    with torch.no_grad():
        found = profile(module, batches)
    assert_same(
        found["first"].spectra["two-sided"], profile(module, batches)["first"].spectra["two-sided"]
    )


# --- what a profile says -----------------------------------------------------------------------


def test_spectra_are_those_of_the_whitened_weight_in_every_metric() -> None:
    torch.manual_seed(0)
    module = networks.InPlaceConvNet()
    found = profile(module, IMAGES)
    for layer in found.layers:
        assert layer.spectra.keys() == METRICS.keys()
        weight = weight_matrix(module.get_submodule(layer.name)).double()
        for name, metric in METRICS.items():
            whitening = metric.whitening(
                found.moments[layer.name], shrinkage=layer.shrinkage, centred=layer.centred
            )
            loss = float(whitening.loss(weight))
            assert layer.loss_of_removal(name) == pytest.approx(loss, rel=1e-9)


def test_without_data_only_the_plain_metric_is_known_and_said_so() -> None:
    found = profile(networks.Mlp(), None)
    assert found.metric == "plain"
    assert all(layer.spectra.keys() == {"plain"} for layer in found.layers)
    assert any("no data" in warning for warning in found.warnings)


def test_operations_are_those_that_torch_counts() -> None:
    module = networks.Attention(tied=False).eval()
    full = [{k: torch.ones_like(v) for k, v in b.items()} for b in token_batches(2, 3, 6)]
    found = profile(module, full)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        module(**full[0])
    assert found.total_flops_per_example == pytest.approx(counter.get_total_flops() / 3)


def test_fewer_rows_behind_a_moment_shrink_it_more() -> None:
    module = networks.Mlp()
    shrinkage = [
        profile(module, feature_batches(1, examples, 6))["first"].shrinkage
        for examples in (1, 4, 16, 256)
    ]
    assert shrinkage == sorted(shrinkage, reverse=True)
    assert 0 < shrinkage[-1] < shrinkage[0] <= 0.5


def test_predicted_losses_follow_the_actual_divergence_of_small_changes() -> None:
    """Random small changes of one layer at a time: predicted and actual agree across layers."""
    torch.manual_seed(0)
    module, batches = networks.Attention(tied=False).eval(), token_batches(4, 16, 6)
    found = profile(module, batches, ProfileOptions(probes=8, bias_compensation=False))
    predicted, actual = [], []
    generator = torch.Generator().manual_seed(0)
    for layer in found.layers:
        weight = module.get_submodule(layer.name).weight
        whitening = METRICS["two-sided"].whitening(found.moments[layer.name])
        for _ in range(4):
            change = 1e-2 * torch.randn(weight.shape, generator=generator)
            difference = copy.deepcopy(module.get_submodule(layer.name))
            difference.weight.data = change
            predicted.append(float(whitening.loss(weight_matrix(difference))))
            actual.append(_divergence(module, {f"{layer.name}.weight": weight + change}, batches))
    logs = torch.tensor([predicted, actual]).log()
    assert float(torch.corrcoef(logs)[0, 1]) > 0.97
    # In common units: no layer's changes are off by more than a factor of 1.6 on average
    assert float((logs[0] - logs[1]).reshape(-1, 4).mean(1).abs().max()) < 0.47


@torch.no_grad()
def _divergence(module: nn.Module, changed: dict[str, Tensor], batches: Sequence[Batch]) -> float:
    total, examples = 0.0, 0
    for batch in batches:
        dense = module(**batch)["logits"]
        other = torch.func.functional_call(module, changed, (), batch)["logits"]
        weights = batch["attention_mask"].float()
        total += float(OBJECTIVES["kl"].divergence(dense, other, weights).sum())
        examples += len(dense)
    return total / examples


# --- bad and odd input ---------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_weight_that_is_not_finite_is_refused_by_name(value: float) -> None:
    module = networks.Mlp()
    module.second.weight.data[0, 0] = value
    with pytest.raises(ModelError, match=r"second\.weight"):
        profile(module, feature_batches(1, 3, 6))


@pytest.mark.parametrize("batches", [[], [{}], [{"x": torch.zeros(0, 6)}]], ids=str)
def test_empty_data_is_refused(batches: list[Batch]) -> None:
    with pytest.raises(DataError, match="empty"):
        profile(networks.Mlp(), batches)


@pytest.mark.parametrize(
    "batch",
    [{"x": torch.zeros(3, 7)}, {"y": torch.zeros(3, 6)}, {"x": torch.zeros(3, 6).long()}],
    ids=["shape", "name", "type"],
)
def test_data_that_does_not_fit_the_model_is_refused_in_one_line(batch: Batch) -> None:
    with pytest.raises(DataError, match="cannot run") as refusal:
        profile(networks.Mlp(), [batch])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("error", [AssertionError, KeyError, AttributeError, ZeroDivisionError])
def test_whatever_the_models_forward_raises_becomes_one_line(error: type[Exception]) -> None:
    def forward(layer: nn.Module, x: Tensor) -> Tensor:
        raise error("too long")

    with pytest.raises(DataError, match="too long"):
        profile(Function(nn.Linear(5, 4), forward), feature_batches(1, 3, 5))


@pytest.mark.parametrize(
    "options", [ProfileOptions(metric="tripled"), ProfileOptions(objective="tripled")]
)
def test_an_unknown_metric_or_objective_is_refused_by_name(options: ProfileOptions) -> None:
    with pytest.raises(DataError, match="tripled"):
        profile(networks.Mlp(), feature_batches(1, 3, 6), options)


def test_an_output_that_is_not_finite_is_refused_with_its_batch() -> None:
    batches = feature_batches(2, 3, 5)
    batches[1]["x"][0, 0] = float("nan")
    for objective in OF_ANY_OUTPUT:
        network = Function(nn.Linear(5, 4), lambda f, x: f(x))
        with pytest.raises(ModelError, match="batch 1"):
            profile(network, batches, ProfileOptions(objective=objective))


def test_inputs_beyond_float32_are_refused_by_the_layers_name() -> None:
    network = Function(nn.Linear(5, 4), lambda f, x: torch.sigmoid(f(x)))
    batches = [{"x": batch["x"] * 1e25} for batch in feature_batches(1, 3, 5)]
    with pytest.raises(ModelError, match="layer: its inputs"):
        profile(network, batches)


def test_gradients_that_are_not_finite_are_refused_by_the_layers_name() -> None:
    network = Function(nn.Linear(5, 4, bias=False), lambda f, x: f(x).sqrt().nan_to_num())
    batches = [{"x": 0 * batch["x"]} for batch in feature_batches(1, 3, 5)]
    with pytest.raises(ModelError, match="layer: its gradients"):
        profile(network, batches)


def test_unreached_layers_are_left_alone_with_the_reason() -> None:
    options = ProfileOptions(outputs=("logits",))
    found = profile(networks.Unreached(), feature_batches(2, 3, 5), options)
    assert [layer.name for layer in found.layers] == ["used"]
    reasons = {left.name: left.reason for left in found.left_alone}
    assert "never reaches" in reasons["never_called"]
    assert "does not depend" in reasons["not_measured"]


def _under_no_grad(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return layer(x)


def _under_inference_mode(layer: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        return layer(x)


@pytest.mark.parametrize(
    "forward",
    [_under_no_grad, _under_inference_mode, lambda layer, x: layer(x).detach()],
    ids=["no_grad", "inference mode", "detach"],
)
def test_a_forward_without_gradients_is_said_and_can_be_weighed_by_inputs(
    forward: Callable[[nn.Module, Tensor], Tensor],
) -> None:
    network = Function(nn.Linear(5, 4), forward)
    with pytest.raises(ModelError, match=r"layer: no gradient reaches it.*input-weighted"):
        profile(network, feature_batches(2, 3, 5))
    found = profile(network, feature_batches(2, 3, 5), ProfileOptions(metric="input-weighted"))
    assert "two-sided" not in found["layer"].spectra
    assert found.metric == "input-weighted"


def test_a_model_that_has_no_gradient_is_said_in_one_line() -> None:
    class Step(torch.autograd.Function):
        @staticmethod
        def forward(_: object, x: Tensor) -> Tensor:
            return torch.sign(x)  # and no backward

    network = Function(nn.Linear(5, 4), lambda layer, x: Step.apply(layer(x)))
    with pytest.raises(ModelError, match="input-weighted") as refusal:
        profile(network, feature_batches(1, 3, 5))
    assert "\n" not in str(refusal.value)


def test_a_part_without_gradients_is_left_alone_with_the_reason() -> None:
    module = nn.ModuleDict({"backbone": nn.Linear(5, 5), "head": nn.Linear(5, 4)})
    network = Function(module, lambda f, x: f["head"](_under_no_grad(f["backbone"], x)))
    found = profile(network, feature_batches(2, 3, 5))
    assert [layer.name for layer in found.layers] == ["layer.head"]
    assert "no_grad" in found.left_alone[-1].reason


def test_torchs_own_encoder_is_measured_layer_by_layer() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    found = profile(Function(encoder, lambda f, x: f(x)), feature_batches(2, 3, 4, 8))
    assert {layer.name for layer in found.layers} == {"layer.linear1", "layer.linear2"}


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_weights_of_other_types_are_profiled_as_float32_ones_are(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, batches = networks.Mlp(), feature_batches(2, 8, 6)
    expected = profile(module, batches)
    found = profile(module.to(dtype), [{"x": b["x"].to(dtype)} for b in batches])
    # Weights, activations and gradients are rounded, each through a few layers
    tolerance = 20 * max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    for layer in expected.layers:
        for metric, spectrum in layer.spectra.items():
            assert_same(found[layer.name].spectra[metric], spectrum, tolerance)


@pytest.mark.parametrize(
    "damage",
    [
        lambda module: module.first.weight.data.zero_(),
        lambda module: module.first.weight.data.fill_(0.3),
        lambda module: module.second.weight.data[:, 1:].zero_(),
        lambda module: module.first.bias.data.fill_(100.0),  # tanh saturates: no gradient left
    ],
    ids=["zero", "constant", "dead channels", "saturated"],
)
@pytest.mark.parametrize("examples", [1, 8])
def test_degenerate_layers_have_finite_spectra(
    damage: Callable[[networks.Mlp], object], examples: int
) -> None:
    module = networks.Mlp()
    damage(module)
    found = profile(module, feature_batches(1, examples, 6))
    for layer in found.layers:
        for spectrum in layer.spectra.values():
            assert bool(torch.isfinite(spectrum).all())
            assert bool((spectrum >= 0).all())


def test_inputs_that_are_always_zero_do_not_make_a_layer_free() -> None:
    """They are taken to be of unit variance: the weights alone tell what is lost."""
    module = networks.Mlp()
    found = profile(module, [{"x": torch.zeros(4, 6)}], ProfileOptions(shrinkage=0.0))
    for metric in ("diagonal", "input-weighted"):
        plain = 0.5 * float(module.first.weight.detach().square().sum())
        assert found["first"].loss_of_removal(metric) == pytest.approx(plain)
    assert found["first"].loss_of_removal("two-sided") > 0
    assert any(w.startswith("first: its inputs are zero on all") for w in found.warnings)


def test_a_single_token_is_enough() -> None:
    batch = {"input_ids": torch.tensor([[3]]), "attention_mask": torch.tensor([[1]])}
    found = profile(networks.Attention(), [batch])
    assert found.tokens == 1
    for layer in found.layers:
        assert all(bool(torch.isfinite(s).all()) for s in layer.spectra.values())


def test_a_model_without_a_layer_to_compress_is_refused() -> None:
    why = r"no layer.*LayerNorm has no matrix form.*give one with Linear"
    with pytest.raises(ModelError, match=why):
        profile(nn.LayerNorm(4), feature_batches(1, 3, 4))


@pytest.mark.parametrize(
    ("batch", "tokens"),
    [
        ({"input_ids": torch.ones(3, 7, dtype=torch.long)}, 21),
        ({"ids": torch.ones(3, 7, dtype=torch.long), "kinds": torch.ones(3).long()}, 21),
        ({"x": torch.ones(3, 7)}, 0),
        ({"pixel_values": torch.ones(3, 1, 4, 4)}, 0),
        ({"input_values": torch.ones(3, 9), "attention_mask": torch.ones(3, 9).long()}, 0),
    ],
)
def test_tokens_are_those_of_text_and_nothing_else(batch: Batch, tokens: int) -> None:
    assert token_count([batch, batch]) == 2 * tokens


# --- trials -----------------------------------------------------------------------------------


def test_trials_take_fewer_examples_and_ranks_of_a_larger_network_but_always_some() -> None:
    shares, examples = affordable_trials(40, 1e6)
    assert (shares, examples) == (SHARES, MOST_EXAMPLES)
    before = MOST_EXAMPLES
    for flops in (1e8, 1e9, 1e10, 1e11, 1e12, 1e15):
        shares, examples = affordable_trials(40, flops)
        assert 1 <= examples <= before
        assert shares
        cost = 40 * len(shares) * examples * flops
        assert cost <= AFFORDABLE_FLOPS or (examples == 1 and len(shares) == 1)
        before = max(examples, EXAMPLES)  # with one rank more examples can be afforded again


def test_trials_hold_the_model_against_the_network_and_leave_it_as_it_was() -> None:
    torch.manual_seed(0)
    make, batches, _ = NETWORKS["features"]
    module = make().eval()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    found = profile(module, batches, ProfileOptions(objective="squared", trials=True))
    tried = [layer for layer in found.layers if layer.trials]
    assert tried
    for layer in tried:
        assert [t.rank for t in layer.trials] == sorted({t.rank for t in layer.trials})
        for trial in layer.trials:
            assert trial.measured > 0
            # at a trial's own rank the curve is corrected to what was measured, however far
            ratio = trial.measured / trial.predicted
            assert layer.correction(trial.rank) == pytest.approx(max(ratio, SMALLEST_CORRECTION))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_layer_without_trials_is_not_corrected() -> None:
    torch.manual_seed(0)
    make, batches, _ = NETWORKS["features"]
    found = profile(make().eval(), batches, ProfileOptions(trials=False))
    assert all(layer.trials == () and layer.correction(1) == 1.0 for layer in found.layers)


class Attends(nn.Module):
    def __init__(self, *, fused: bool) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fused, self.layer = fused, nn.Linear(16, 16)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x)[:, None]  # (examples, 1, positions, 16)
        if self.fused:
            return functional.scaled_dot_product_attention(y, y, y)[:, 0]
        return ((y @ y.mT / 4).softmax(-1) @ y)[:, 0]


def test_attention_counts_whichever_way_it_is_computed() -> None:
    batches = networks.feature_batches(1, 3, 12, 16)
    fused, plain = (profile(Attends(fused=kind).eval(), batches) for kind in (True, False))
    assert fused.total_flops_per_example == plain.total_flops_per_example
    assert plain.total_flops_per_example == 2 * 12 * 16 * 16 + 4 * 12 * 12 * 16
