"""What adapters get silently wrong on factorised layers: shown with PEFT itself, and refused."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from math import sqrt
from typing import Any

import networks
import peft
import pytest
import torch
from adapted_networks import (
    STEPS,
    assert_close,
    attach,
    compress_plainly_,
    mixed,
    outputs,
    perturb_,
    snapshot,
    train_,
)
from networks import Function
from torch import Tensor, nn

from lrcompress.errors import TuneError
from lrcompress.structures import Blast, LowRank, Structure
from lrcompress.tuning.adapters import ADAPTERS, AdapterOptions
from lrcompress.tuning.adapters.adalora import BudgetedAdapter
from lrcompress.tuning.adapters.on_factors import FactorAdapter
from lrcompress.tuning.adapters.peft_access import read_update, wrap
from lrcompress.tuning.adapters.targets import Site

DOUBLE = torch.float64


def low_rank_pair(rank: int = 3) -> nn.Module:
    """Two layers of low rank, and a dense head behind."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 8), nn.Linear(8, 4)).to(DOUBLE)
    return compress_plainly_(network, {"0": LowRank(rank), "2": LowRank(rank)}).eval()


def by_peft(module: nn.Module, targets: object, **settings: object) -> nn.Module:
    """PEFT's LoRA of rank 2, and every adapter moved."""
    config = peft.LoraConfig(r=2, lora_alpha=2, target_modules=targets, **settings)
    peft.inject_adapter_in_model(config, module)
    perturb_(module)
    return module.eval()


def merge_error_of_peft(module: nn.Module, x: Tensor) -> float:
    """How far merging moves what the adapters compute, of the largest output."""
    trained = outputs(module, {"input": x})
    for part in list(module.modules()):
        if hasattr(part, "merge"):
            part.merge()
    return float((outputs(module, {"input": x}) - trained).abs().max() / trained.abs().max())


def wrapped_by_peft(module: nn.Module) -> set[str]:
    return {name for name, part in module.named_modules() if hasattr(part, "base_layer")}


def attach_to(module: nn.Module, layers: Iterable[str], name: str = "lora", **fields: Any) -> None:
    options = AdapterOptions(**{"rank": 2, **fields})
    ADAPTERS[name](options).attach_(module, list(layers), total_steps=STEPS, seed=0)


def assert_refused(
    module: nn.Module, layers: Iterable[str], match: str, name: str = "lora", **fields: Any
) -> None:
    """In one line, and with the network left as it was."""
    before = snapshot(module)
    with pytest.raises(TuneError, match=match) as refusal:
        attach_to(module, layers, name, **fields)
    assert "\n" not in str(refusal.value)
    assert snapshot(module) == before


# --- traps of facts: shown, then refused ---------------------------------------------------------


class ComputedWeight(nn.Linear):
    """A factorised layer that passes for an nn.Linear: its weight is made on each reading."""

    def __init__(self, rank: int = 3) -> None:
        super().__init__(6, 4, dtype=DOUBLE)
        del self.weight
        self.left = nn.Parameter(torch.randn(4, rank, dtype=DOUBLE))
        self.right = nn.Parameter(torch.randn(rank, 6, dtype=DOUBLE))

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        return self.left @ self.right


def test_a_weight_that_is_computed_is_refused_as_merging_would_lose_the_adapter() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 6, dtype=DOUBLE)
    assert merge_error_of_peft(by_peft(nn.Sequential(ComputedWeight()), ["0"]), x) > 0.01
    assert_refused(nn.Sequential(ComputedWeight()), ["0"], "0: its weight is computed .* lost")


def tied_attention() -> nn.Module:
    torch.manual_seed(0)
    return compress_plainly_(networks.Attention(), {"embedding": LowRank(4), "query": LowRank(3)})


def test_a_factor_that_two_layers_share_is_refused_as_only_one_would_be_wrapped() -> None:
    wrapped = wrapped_by_peft(by_peft(tied_attention(), r".*\.codes"))
    assert wrapped == {"embedding.codes"}  # and not the head's
    for layer in ("embedding", "head"):
        assert_refused(tied_attention(), ["query", layer], f"{layer}: its factor .* is shared with")
    network = low_rank_pair()
    network[2].down.weight = nn.Parameter(network[2].down.weight[:, :6].detach().clone())
    network[0].down.weight = network[2].down.weight
    assert_refused(network, ["0"], r"0: its factor 0\.down\.weight is shared with 2\.down")


def test_heads_and_names_with_the_same_end_are_left_alone() -> None:
    assert "3" in wrapped_by_peft(by_peft(low_rank_pair(), "all-linear"))
    network = low_rank_pair()
    attach_to(network, ["0", "2"])
    assert wrapped_by_peft(network) == {"0.down", "0.up", "2.down", "2.up"}
    twins = nn.ModuleDict({"0": low_rank_pair(), "inner": nn.ModuleDict({"0": low_rank_pair()})})
    assert len(wrapped_by_peft(by_peft(twins, ["0.0.down"]))) == 2
    twins = nn.ModuleDict({"0": low_rank_pair(), "inner": nn.ModuleDict({"0": low_rank_pair()})})
    attach_to(twins, ["0.0"])
    assert wrapped_by_peft(twins) == {"0.0.down", "0.0.up"}


def test_a_rank_above_the_factors_own_is_refused_or_capped_with_a_note() -> None:
    by_peft(low_rank_pair(rank=1), ["0.down"])  # rank 2 on a factor of rank 1: not a word
    assert_refused(low_rank_pair(), ["0", "2"], "rank 4 is above the rank of every factor", rank=4)
    assert_refused(low_rank_pair(), ["0"], "0: an adapter of rank 4 on factors", ranks={"0": 4})
    assert_refused(low_rank_pair(), ["0"], "2, which is not adapted", ranks={"2": 1})
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(6, 8), nn.Linear(8, 8))
    compress_plainly_(network, {"0": LowRank(2), "1": LowRank(6)})
    adapter = ADAPTERS["lora"](AdapterOptions(rank=4, ranks={"1": 5}))
    adapter.attach_(network, ["0", "1"], total_steps=STEPS, seed=0)
    assert [row.rank for row in adapter.attached] == [2, 2, 5, 5]
    assert [bool(row.note) for row in adapter.attached] == [True, True, False, False]


@pytest.mark.parametrize(
    "settings",
    [
        {"padding": 1, "padding_mode": "circular"},
        {"padding": "same", "dilation": 2},
        {"padding": 1, "groups": 2},
    ],
    ids=["padding mode", "dilation", "groups"],
)
def test_convolutions_train_what_they_merge(settings: dict[str, Any]) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Conv2d(4, 6, 3, **settings)).to(DOUBLE).eval()

    x = torch.randn(2, 4, 7, 7, dtype=DOUBLE)
    if "groups" in settings:
        with pytest.raises(NotImplementedError), pytest.warns(UserWarning, match="groups > 1"):
            merge_error_of_peft(by_peft(network(), ["0"]), x)
    else:
        assert merge_error_of_peft(by_peft(network(), ["0"]), x) > 0.01
    ours = network()
    adapter = ADAPTERS["lora"](AdapterOptions(rank=2))
    adapter.attach_(ours, ["0"], total_steps=STEPS, seed=0)
    perturb_(ours)
    trained = outputs(ours, {"input": x})
    adapter.merge_({})
    assert_close(outputs(ours, {"input": x}), trained)


def test_torchs_own_encoder_sees_the_adapters_on_its_fast_path() -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, dtype=DOUBLE)
        return compress_plainly_(Function(encoder, lambda f, x: f(x)), CHANGED).eval()

    CHANGED: dict[str, Structure] = {"layer.linear1": LowRank(4), "layer.linear2": LowRank(4)}
    x = torch.randn(3, 5, 8, dtype=DOUBLE)

    def gap(module: nn.Module) -> float:
        """Between evaluation without gradients, which may be fast, and with them."""
        slow = module(x.clone().requires_grad_()).detach()
        return float((outputs(module, {"x": x}) - slow).abs().max())

    theirs = by_peft(network(), r".*\.(down|up)")
    assert gap(theirs) > 0.01
    ours = network()
    attach_to(ours, CHANGED)
    perturb_(ours)
    scale = float(outputs(ours, {"x": x}).abs().max())
    assert gap(ours) < 1e3 * torch.finfo(DOUBLE).eps * scale  # as in assert_close


def test_a_layer_that_attention_reads_itself_is_refused() -> None:
    network = nn.Sequential(nn.MultiheadAttention(8, 2))
    assert_refused(network, ["0.out_proj"], "MultiheadAttention reads its weight")


# --- what else is refused ------------------------------------------------------------------------


def test_layers_that_cannot_be_adapted_are_refused_by_name() -> None:
    assert_refused(low_rank_pair(), [], "no layers")
    assert_refused(low_rank_pair(), ["9"], "9: the network has no such layer")
    assert_refused(low_rank_pair(), ["1"], "1: Tanh has no factors")
    assert_refused(low_rank_pair(), ["0", "0.down"], "in two of the layers named")
    assert_refused(low_rank_pair()[0], [""], "single layer")
    broken = low_rank_pair()
    with torch.no_grad():
        broken[2].up.weight[0, 0] = torch.inf
    assert_refused(broken, ["0", "2"], r"2\.up\.weight: holds values that are not finite")


def test_dropout_is_refused_where_it_would_not_reach() -> None:
    torch.manual_seed(0)
    network = compress_plainly_(nn.Sequential(nn.Linear(6, 6)), {"0": Blast(3, 2, 2)})
    assert_refused(network, ["0"], r"0\.left: dropout does not reach", dropout=0.1)


def test_dora_refuses_rows_of_zeros_by_whose_norm_it_would_divide() -> None:
    network = low_rank_pair()
    with torch.no_grad():
        network[0].up.weight[1] = 0
    assert_refused(network, ["0"], r"0\.up\.weight: dora divides .* 1 are zero", name="dora")


def test_methods_without_a_place_beside_layers_refuse_it() -> None:
    for name in ("dora", "pissa", "olora", "adalora"):
        with pytest.raises(TuneError, match=f"{name}: adapts the factors only"):
            ADAPTERS[name](AdapterOptions(place="layer"))


@pytest.mark.parametrize(
    "fields",
    [
        {"rank": 0},
        {"ranks": {"a": 0}},
        {"dropout": 1.0},
        {"alpha": 0.0},
        {"alpha": float("nan")},
        {"place": "elsewhere"},
        {"initial_rank": 4},
    ],
    ids=str,
)
def test_options_out_of_range_are_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(TuneError, match="adapter: "):
        AdapterOptions(**fields)


@pytest.mark.parametrize("name", ["lora", "pissa", "adalora"])
def test_a_failure_on_the_way_leaves_the_network_as_it_was(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module, _ = mixed()
    before, values = snapshot(module), {k: v.clone() for k, v in module.state_dict().items()}
    calls: list[Site] = []

    def failing(site: Site, *others: Any) -> Any:
        calls.append(site)
        if len(calls) > 12:
            raise RuntimeError("out of memory")
        return wrap(site, *others)

    monkeypatch.setattr("lrcompress.tuning.adapters.on_factors.wrap", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        attach(name, module)
    assert len(calls) == 13
    assert snapshot(module) == before
    assert all(torch.equal(value, values[key]) for key, value in module.state_dict().items())


def test_one_adapter_serves_one_network_at_a_time() -> None:
    module, _ = mixed()
    adapter = attach("lora", module)
    with pytest.raises(TuneError, match="merge it first"):
        adapter.attach_(low_rank_pair(), ["0"], total_steps=STEPS, seed=0)
    adapter.merge_({})
    with pytest.raises(TuneError, match="attach it first"):
        adapter.merge_({})


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    assert_refused(low_rank_pair(), ["0"], r"needs peft .*lrcompress\[tune\]")


# --- conventions of PEFT -------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "expected"), [("lora", 6 / 2), ("rslora", 6 / sqrt(2))])
def test_the_scaling_is_that_of_peft_in_every_kind_of_factor(name: str, expected: float) -> None:
    module, _ = mixed()
    adapter = attach(name, module, AdapterOptions(rank=2, alpha=6.0))
    assert isinstance(adapter, FactorAdapter)
    scalings = {w.site.name: read_update(w.site, w.wrapper)[2] for w in adapter.wrapped}
    assert len(scalings) > 20
    assert all(scaling == pytest.approx(expected) for scaling in scalings.values())


@pytest.mark.parametrize("alpha", [2.0, 5.0])
@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_starts_are_those_of_peft_for_linear_layers(name: str, alpha: float) -> None:
    def network() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8))

    theirs, ours = network(), network()
    settings = {"r": 2, "lora_alpha": alpha, "target_modules": ["0"], "init_lora_weights": name}
    peft.inject_adapter_in_model(peft.LoraConfig(**settings), theirs)
    attach_to(ours, ["0"], name, alpha=alpha)
    assert_close(ours[0].base_layer.weight, theirs[0].base_layer.weight)
    assert_close(ours[0].get_delta_weight("default"), theirs[0].get_delta_weight("default"))


@pytest.mark.parametrize("name", ["pissa", "olora"])
def test_starts_reach_embeddings_too_where_peft_falls_back_to_zero(name: str) -> None:
    theirs = nn.Sequential(nn.Embedding(9, 4))
    config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=name)
    peft.inject_adapter_in_model(config, theirs)
    assert not bool(theirs[0].get_delta_weight("default").any())
    module, _ = mixed()
    adapter = attach(name, module)
    assert isinstance(adapter, FactorAdapter)
    for wrapped in adapter.wrapped:
        left, right, scaling = read_update(wrapped.site, wrapped.wrapper)
        whole = scaling * left @ right + wrapped.site.matrix
        largest = torch.linalg.matrix_norm(whole, 2)
        rest = torch.linalg.matrix_norm(wrapped.site.matrix, 2)
        assert bool((rest < largest * (1 + 1e-9)).all())
        assert float((left @ right).abs().max()) > 0
        if name == "pissa":  # what stays frozen begins at the next singular value
            following = torch.linalg.svdvals(whole)[..., wrapped.rank : wrapped.rank + 1]
            expected = following.squeeze(-1) if following.shape[-1] else torch.zeros_like(rest)
            torch.testing.assert_close(rest, expected, rtol=0, atol=1e-12)


def test_dropout_acts_in_training_alone() -> None:
    network = low_rank_pair()
    attach_to(network, ["0", "2"], dropout=0.5)
    perturb_(network)
    x = torch.randn(5, 6, dtype=DOUBLE)
    assert torch.equal(network(x), network(x))
    network.train()
    assert not torch.equal(network(x), network(x))


# --- AdaLoRA's budget ----------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [2, 3, 10, 40])
@pytest.mark.parametrize("initial_rank", [None, 2, 3])
def test_the_final_ranks_sum_to_the_budget(steps: int, initial_rank: int | None) -> None:
    network = low_rank_pair(rank=3)
    adapter = BudgetedAdapter(AdapterOptions(rank=2, initial_rank=initial_rank))
    adapter.attach_(network, ["0", "2"], total_steps=steps, seed=0)
    assert adapter.budget == 2 * 4
    assert {row.rank for row in adapter.attached} == {initial_rank or 3}
    train_(adapter, network, {"input": torch.randn(20, 6, dtype=DOUBLE)}, steps)
    assert adapter.merge_({}).rank == 2 * 4


def test_the_budget_goes_where_gradients_are() -> None:
    """A layer that does not reach the output has no importance; what is equal fills the budget."""
    network = nn.ModuleDict({"used": low_rank_pair(), "idle": low_rank_pair()})
    module = Function(network, lambda both, x: both["used"](x))
    adapter = BudgetedAdapter(AdapterOptions(rank=1, initial_rank=3))
    layers = [f"layer.{part}.{i}" for part in ("used", "idle") for i in (0, 2)]
    adapter.attach_(module, layers, total_steps=20, seed=0)
    train_(adapter, module, {"x": torch.randn(20, 6, dtype=DOUBLE)}, 20)
    ranks = {row.name: sum(row.ranks.values()) for row in adapter.merge_({}).layers}
    assert sum(ranks.values()) == 8
    assert ranks["layer.used.0"] + ranks["layer.used.2"] == 8


def test_adalora_needs_steps_to_share_out_its_ranks() -> None:
    adapter = BudgetedAdapter(AdapterOptions(rank=2))
    with pytest.raises(TuneError, match="take 2 or more"):
        adapter.attach_(low_rank_pair(), ["0"], total_steps=1, seed=0)


def test_the_penalty_is_zero_for_orthonormal_updates() -> None:
    network = low_rank_pair()
    adapter = BudgetedAdapter(AdapterOptions(rank=2))
    adapter.attach_(network, ["0", "2"], total_steps=STEPS, seed=0)
    penalty = adapter.penalty()
    assert penalty is not None
    assert float(penalty.detach()) > 0.1
    with torch.no_grad():
        for wrapped in adapter.wrapped:
            nn.init.orthogonal_(wrapped.wrapper.lora_A["default"])
            nn.init.orthogonal_(wrapped.wrapper.lora_B["default"])
    penalty = adapter.penalty()
    assert penalty is not None
    # a QR is orthonormal to a few roundings in each entry
    assert float(penalty.detach()) < 100 * torch.finfo(DOUBLE).eps
