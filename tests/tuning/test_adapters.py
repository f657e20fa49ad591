"""Claims of adapters: few parameters train, and merging gives back the same modules, exactly."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import pytest
import torch
from adapted_networks import (
    STEPS,
    assert_close,
    attach,
    mixed,
    outputs,
    perturb_,
    snapshot,
    train_,
    train_step_,
)
from structure_cases import KINDS, SIZES, Case, Host
from torch import Tensor, nn

from lrcompress.compression.replace import install_
from lrcompress.errors import TuneError
from lrcompress.layers import describe, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.structures import (
    STRUCTURES,
)
from lrcompress.structures.tensor_train_module import TensorTrainEmbedding
from lrcompress.tuning.adapters import (
    ADAPTERS,
    Adapter,
    AdapterOptions,
    AttachedFactor,
    MergeReport,
)

every_adapter = pytest.mark.parametrize("name", ADAPTERS)


# --- every method, on a network of every structure -----------------------------------------------


@dataclass
class History:
    """One adapter's life on the mixed network."""

    before: dict[str, object]
    first: dict[str, Tensor]
    dense: Tensor
    generator_kept: bool
    attached: tuple[AttachedFactor, ...]
    untrained: Tensor
    state: dict[str, Tensor]
    trained: Tensor
    report: MergeReport
    after: dict[str, object]
    last: dict[str, Tensor]
    merged: Tensor


@cache
def history(name: str, dtype: torch.dtype = torch.float64) -> History:
    module, batch = mixed(dtype)
    module.embedding.requires_grad_(requires_grad=False)
    before, dense, first = snapshot(module), outputs(module, batch), values(module)
    generator = torch.get_rng_state()
    adapter = attach(name, module)
    kept = torch.equal(torch.get_rng_state(), generator)
    attached, untrained = adapter.attached, outputs(module, batch)
    train_(adapter, module, batch, STEPS)
    state, trained = values(module), outputs(module, batch)
    report = adapter.merge_({})
    assert adapter.attached == ()
    return History(
        before, first, dense, kept, attached, untrained, state, trained, report,
        snapshot(module), values(module), outputs(module, batch),
    )  # fmt: skip


def values(module: nn.Module) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in module.state_dict().items()}


@every_adapter
def test_adapters_that_were_not_trained_change_nothing(name: str) -> None:
    assert_close(history(name).untrained, history(name).dense)
    module, batch = mixed()
    attach(name, module).merge_({})
    assert_close(outputs(module, batch), history(name).dense)


@every_adapter
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_merged_factors_compute_what_the_adapters_did(name: str, dtype: torch.dtype) -> None:
    run = history(name, dtype)
    scale = float(run.trained.abs().max())
    moved = 1e-4 if name == "deep-lora" else 0.1  # whose update is of three small factors
    assert float((run.trained - run.dense).abs().max()) > moved * scale
    assert_close(run.merged, run.trained)
    if dtype is torch.float32:
        assert float((run.merged - run.trained).abs().max()) <= 1e-6 * scale


@every_adapter
def test_merging_gives_back_modules_names_and_types(name: str) -> None:
    run = history(name)
    assert run.after == run.before
    assert run.report.loss == 0


@every_adapter
def test_only_adapters_train_and_factors_that_are_said_to(name: str) -> None:
    run = history(name)
    assert all(bool(row.note) for row in run.attached if row.rank == 0)
    changed = {key for key in run.first if not torch.equal(run.first[key], run.last[key])}
    assert changed == {row.factor for row in run.attached}
    ranks = {factor: rank for row in run.report.layers for factor, rank in row.ranks.items()}
    assert ranks.keys() == {row.factor for row in run.attached if row.rank > 0}


@every_adapter
def test_the_seed_decides_every_bit_and_the_global_generator_is_left_alone(name: str) -> None:
    assert history(name).generator_kept
    module, batch = mixed()
    module.embedding.requires_grad_(requires_grad=False)
    torch.manual_seed(7)
    train_(attach(name, module), module, batch, STEPS)
    state = module.state_dict()
    assert all(torch.equal(state[key], value) for key, value in history(name).state.items())
    one, other = mixed()[0], mixed()[0]
    attach(name, one, seed=3)
    attach(name, other, seed=4)
    same = all(map(torch.equal, one.state_dict().values(), other.state_dict().values()))
    assert same == (name in ("pissa", "olora"))  # which begin at the weights alone


@every_adapter
def test_a_resumed_run_ends_with_the_same_bits(name: str) -> None:
    def begin() -> tuple[Adapter, nn.Module, dict[str, Tensor], torch.optim.Optimizer]:
        module, batch = mixed()
        adapter = attach(name, module)
        trained = [p for p in module.parameters() if p.requires_grad]
        return adapter, module, batch, torch.optim.Adam(trained, lr=1e-2)

    def run(part: range) -> list[float]:
        return [train_step_(adapter, module, batch, target, optimiser, i) for i in part]

    target = torch.ones(6, 5, dtype=torch.float64)
    adapter, module, batch, optimiser = begin()
    run(range(STEPS // 2))
    kept = copy.deepcopy((module.state_dict(), optimiser.state_dict(), adapter.state_dict()))
    losses = run(range(STEPS // 2, STEPS))
    report = adapter.merge_({})
    expected = module.state_dict()

    adapter, module, batch, optimiser = begin()
    module.load_state_dict(kept[0])
    optimiser.load_state_dict(kept[1])
    adapter.load_state_dict(kept[2])
    assert run(range(STEPS // 2, STEPS)) == losses
    assert adapter.merge_({}) == report
    assert all(torch.equal(module.state_dict()[key], expected[key]) for key in expected)


@every_adapter
def test_an_adapter_that_is_not_finite_is_refused_and_stays(name: str) -> None:
    module, batch = mixed()
    adapter = attach(name, module)
    train_(adapter, module, batch, STEPS)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    mine = (p for n, p in module.named_parameters() if n.startswith("low_rank.up."))
    broken = next(p for p in mine if p.requires_grad)
    held = broken.detach().clone()
    with torch.no_grad():
        broken.fill_(torch.nan)
    with pytest.raises(TuneError, match=r"low_rank: its adapter .* lower learning rate"):
        adapter.merge_({})
    with torch.no_grad():
        broken.copy_(held)
    after = module.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    adapter.merge_({})


@pytest.mark.parametrize("name", [name for name in ADAPTERS if name != "deep-lora"])
def test_a_merge_that_overflows_is_undone(name: str) -> None:
    module, _ = mixed(torch.float16)
    adapter = attach(name, module)
    named = dict(module.named_parameters())
    with torch.no_grad():
        for key, parameter in named.items():  # the last factor to be merged, of all but raw ones
            if "cp.stages.3" in key and "lora_" in key:
                parameter.fill_(1e6)
    before = {key: value.clone() for key, value in module.state_dict().items()}
    with pytest.raises(TuneError, match=r"cp: .*cp\.stages\.3\.weight is not finite"):
        adapter.merge_({})
    after = module.state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before)


@every_adapter
def test_half_precision_factors_get_adapters_of_single(name: str) -> None:
    module, batch = mixed(torch.bfloat16)
    before, factors = snapshot(module), set(module.parameters())
    adapter = attach(name, module)
    kinds = {p.dtype for p in module.parameters() if p.requires_grad and p not in factors}
    assert kinds == {torch.float32}
    assert outputs(module, batch).dtype is torch.bfloat16
    train_(adapter, module, batch, STEPS)
    trained = outputs(module, batch)
    adapter.merge_({})
    assert snapshot(module) == before
    assert_close(outputs(module, batch), trained, factor=10)


# --- every structure in every kind of layer ------------------------------------------------------


def structured(structure_type: str, case: Case) -> Host:
    """With the largest structure of its type in the layer's place."""
    host = case.host()
    (spec,) = describe(host).layers
    structure = SIZES[structure_type](spec)[-1]
    factors = structure.fit(weight_matrix(host.layer), Whitening(), spec)
    bias = getattr(host.layer, "bias", None)
    install_(host, spec, structure, factors, None if bias is None else bias.detach())
    return host


def _adaptable(name: str, host: Host) -> Iterator[bool]:
    """By factor, whether the method can adapt it, told by types alone."""
    for part in host.layer.modules():
        grouped = getattr(part, "groups", 1) > 1
        circular = getattr(part, "padding_mode", "zeros") != "zeros"
        if type(part) is nn.Linear or (type(part) is nn.Conv2d and not grouped and not circular):
            yield True
        elif type(part) is nn.Embedding:
            yield name != "adalora" and type(host.layer) is not TensorTrainEmbedding
        elif isinstance(part, nn.Conv1d | nn.Conv2d):
            yield name in ("lora", "pissa") or (name == "dora" and not grouped)
        else:
            yield name in ("lora", "pissa") and bool(dict(part.named_parameters(recurse=False)))


@pytest.mark.parametrize(
    ("structure_type", "case"),
    [
        pytest.param(structure_type, case, id=f"{structure_type}, {kind}")
        for structure_type in STRUCTURES
        for kind, case in KINDS.items()
        if not case.tied and SIZES[structure_type](describe(case.host()).layers[0])
    ],
)
@pytest.mark.parametrize(  # the others differ by a scaling or a start
    "name",
    ["lora", "dora", *(pytest.param(n, marks=pytest.mark.slow) for n in ("pissa", "adalora"))],
)
def test_every_structure_is_merged_exactly_in_its_own_size(
    name: str, structure_type: str, case: Case
) -> None:
    host, x = structured(structure_type, case), case.inputs()
    before, expected = snapshot(host), outputs(host, {"x": x})
    adapter = ADAPTERS[name](AdapterOptions(rank=2, alpha=3.0))
    if not any(_adaptable(name, host)):
        with pytest.raises(TuneError, match="can adapt no factor here"):
            adapter.attach_(host, ["layer"], total_steps=STEPS, seed=0)
        assert snapshot(host) == before
        return
    adapter.attach_(host, ["layer"], total_steps=STEPS, seed=0)
    if name == "dora" and case is KINDS["conv2d without a batch"]:
        with pytest.raises(TuneError, match="needs a batch axis"):
            outputs(host, {"x": x})
        return
    assert_close(outputs(host, {"x": x}), expected)
    perturb_(host)
    trained = outputs(host, {"x": x})
    assert not torch.allclose(trained, expected)
    adapter.merge_({})
    assert snapshot(host) == before
    assert_close(outputs(host, {"x": x}), trained)
