"""Claims of tuning: it helps, never harms, keeps every size, and goes on after a stop."""

from __future__ import annotations

import copy
import functools
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import networks
import pytest
import small_network
import tiny_models
import torch
from networks import feature_batches
from torch import Tensor, nn

import lrcompress
from lrcompress.checkpoint import CheckpointFolder, Entry
from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.errors import DataError, TuneError
from lrcompress.network.batches import Batch, batch_size
from lrcompress.network.call import call
from lrcompress.network.held_out_divergence import held_out_divergence
from lrcompress.network.readout import choose_readout
from lrcompress.planning.planner import plan
from lrcompress.profiling.profiler import profile
from lrcompress.tuning.build_setup import parameters_of, prepared, requiring_only
from lrcompress.tuning.features import hidden_difference, hidden_points, watching
from lrcompress.tuning.optimisers import OPTIMISERS
from lrcompress.tuning.options import Scope, TuneOptions
from lrcompress.tuning.regularisers import REGULARISERS
from lrcompress.tuning.split import replaced_layers, split
from lrcompress.tuning.training_setup import accumulate_, draws, factor
from lrcompress.tuning.tune import tune_

SHORT = TuneOptions(steps=40, learning_rate=3e-3)
# Two ways through the same products in float32, a few layers of width 40
FP32 = 1e-5


def batches(count: int = 10, examples: int = 64) -> list[Batch]:
    return [{"x": b["x"] * 2} for b in feature_batches(count, examples, small_network.WIDTH)]


def pair(budget: str = "40%") -> tuple[nn.Module, nn.Module]:
    """A compressed network and its dense one."""
    return copy.deepcopy(_pair(budget))


@functools.cache
def _pair(budget: str) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense = small_network.build().eval()
    with torch.no_grad():
        dense.head.weight *= 5  # scores that tell the classes apart
    module = copy.deepcopy(dense)
    found = profile(module, batches())
    compress_(module, plan(found, budget), found, options=CompressOptions(refit=False))
    return disturbed(module, dense), dense


def disturbed(module: nn.Module, dense: nn.Module) -> nn.Module:
    """With noise in the factors: what was lost can be found again, by any method that learns."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name in replaced_layers(module, dense):
            for factor in module.get_submodule(name).parameters():
                if factor.dim() > 1:
                    noise = torch.randn(factor.shape, generator=generator)
                    factor += 0.3 * factor.std() * noise
    return module


def divergence(module: nn.Module, dense: nn.Module, data: list[Batch]) -> float:
    with torch.no_grad():
        readout, _ = choose_readout(call(dense, data[0]))
    return held_out_divergence(dense, data, readout).divergence(module)


def state(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(one[k].equal(other[k]) for k in one)


# ---- what it does ---------------------------------------------------------------------------


def test_tuning_brings_the_network_closer_on_examples_it_never_saw() -> None:
    module, dense = pair()
    unseen = [{"x": b["x"] * 2} for b in feature_batches(4, 32, small_network.WIDTH, seed=9)]
    before = divergence(module, dense, unseen)
    report = tune_(module, dense, batches(), SHORT)
    assert report.improved
    assert divergence(module, dense, unseen) < 0.9 * before


def test_the_report_says_what_the_kept_weights_measure() -> None:
    module, dense = pair()
    data = batches()
    before = divergence(module, dense, list(split(data).held_out))
    report = tune_(module, dense, data, SHORT)
    after = divergence(module, dense, list(split(data).held_out))
    assert (report.start, report.end) == (before, after)
    assert report.measure == "kl divergence"
    assert [entry.step for entry in report.history] == [0, 10, 20, 30, 40]
    values = [entry.value for entry in report.history]
    assert min(v for v in values if v is not None) == report.end
    assert report.history[report.best_step // 10].value == report.end
    assert len(report.losses) == report.steps == 40
    assert report.taught_examples + report.judging_examples == sum(map(batch_size, data))


@pytest.mark.parametrize("scope", ["factors", "vectors", "all"])
def test_every_size_and_everything_out_of_scope_stays(scope: str) -> None:
    module, dense = pair()
    before, names = state(module), [name for name, _ in module.named_parameters()]
    original = state(dense)
    report = tune_(module, dense, batches(), replace(SHORT, scope=scope))  # type: ignore[arg-type]
    after = state(module)
    assert [name for name, _ in module.named_parameters()] == names
    assert {k: v.shape for k, v in after.items()} == {k: v.shape for k, v in before.items()}
    moved = {name for name in after if not after[name].equal(before[name])}
    inside = replaced_layers(module, dense)
    factors = {name for name in names if name.startswith(tuple(f"{layer}." for layer in inside))}
    norms = {name for name in names if ".norm." in name}
    assert factors <= moved
    assert bool(norms & moved) == (scope != "factors")
    assert report.trained_params <= sum(p.numel() for p in module.parameters())
    assert same(state(dense), original)


def test_modes_gradients_and_the_global_generator_are_given_back() -> None:
    module, dense = pair()
    module.train()
    first = next(module.parameters()).requires_grad_(False)
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    tune_(module, dense, batches(), replace(SHORT, steps=3))
    assert torch.rand(4).equal(expected)
    assert module.training
    assert not first.requires_grad
    assert all(p.grad is None for p in module.parameters())


@pytest.mark.parametrize("kind", ["bert", "llama", "gpt2", "vit"])
def test_networks_of_other_architectures_are_tuned_as_they_come(kind: str) -> None:
    torch.manual_seed(0)
    dense = tiny_models.MODELS[kind]().eval()
    with torch.no_grad():
        for parameter in dense.parameters():
            parameter *= 1 if parameter.dim() < 2 else 4  # fresh weights hardly tell inputs apart
    data: list[Batch]
    if kind == "vit":
        data = [{"pixel_values": torch.randn(4, 3, 16, 16)} for _ in range(20)]
    else:
        mask = (torch.arange(9) < torch.tensor([[9], [7], [5], [9]])).long()
        data = [
            {"input_ids": torch.randint(4, 17, (4, 9)) * mask, "attention_mask": mask}
            for _ in range(5)
        ]
    found = profile(dense, data)
    module = copy.deepcopy(dense)
    compress_(module, plan(found, "70%"), found, options=CompressOptions(refit=False))
    report = tune_(disturbed(module, dense), dense, data, TuneOptions(steps=20))
    assert report.improved


# ---- it never harms -------------------------------------------------------------------------


@pytest.mark.parametrize("rate", [1.0, 1e4])
def test_a_rate_that_breaks_the_network_costs_nothing(rate: float) -> None:
    module, dense = pair("80%")
    before = state(module)
    report = tune_(module, dense, batches(), replace(SHORT, learning_rate=rate))
    assert report.restarts > 0
    assert report.learning_rate < rate
    assert report.end <= report.start
    if not report.improved:
        assert report.best_step == 0
        assert same(state(module), before)


def test_a_loss_that_is_not_finite_is_left_behind() -> None:
    module, dense = pair()
    calls = 0

    def loss(network: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += torch.is_grad_enabled()
        value = (call(network, batch) - call(dense, batch)).square().mean()  # type: ignore[operator]
        return value * float("nan") if calls == 15 else value

    report = tune_(module, dense, batches(), replace(SHORT, objective="task"), task=loss)
    assert report.restarts == 1
    assert [entry.step for entry in report.history if entry.value is None] == [15]
    assert len(report.losses) == report.steps - 1
    assert report.improved


@pytest.mark.parametrize("optimiser", [name for name in OPTIMISERS if name != "galore"])
def test_no_optimiser_ends_worse_than_it_began(optimiser: str) -> None:
    module, dense = pair()
    report = tune_(module, dense, batches(), TuneOptions(steps=20, optimiser=optimiser))
    assert report.end < report.start


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_no_regulariser_ends_worse_than_it_began_and_none_stays(regulariser: str) -> None:
    module, dense = pair()
    before = [(name, p.shape) for name, p in module.named_parameters()]
    options = TuneOptions(steps=20, learning_rate=1e-3, regularisers=(regulariser,))
    report = tune_(module, dense, batches(), options)
    assert report.end < report.start
    assert [(name, p.shape) for name, p in module.named_parameters()] == before
    again, _ = pair()
    assert tune_(again, dense, batches(), options) == report


@pytest.mark.parametrize("adapter", ["lora", "pissa", "adalora"])
def test_adapters_are_folded_into_factors_of_the_same_sizes(adapter: str) -> None:
    pytest.importorskip("peft")
    module, dense = pair()
    data = batches()
    before = [(name, p.shape) for name, p in module.named_parameters()]
    options = TuneOptions(steps=20, learning_rate=3e-3, adapter=adapter, adapter_rank=2)
    report = tune_(module, dense, data, options)
    assert [(name, p.shape) for name, p in module.named_parameters()] == before
    assert report.end <= report.start
    assert divergence(module, dense, list(split(data).held_out)) == report.end
    assert set(report.merge_losses) <= set(replaced_layers(module, dense))


def test_an_adapter_beside_the_layer_is_truncated_to_its_rank_and_the_loss_is_told() -> None:
    pytest.importorskip("peft")
    module, dense = pair()
    before = [(name, p.shape) for name, p in module.named_parameters()]
    options = TuneOptions(
        steps=20, learning_rate=3e-3, adapter="lora", adapter_rank=2, adapter_place="layer"
    )
    report = tune_(module, dense, batches(), options)
    assert [(name, p.shape) for name, p in module.named_parameters()] == before
    assert report.end < report.start
    assert any(loss > 0 for loss in report.merge_losses.values())
    with pytest.raises(TuneError, match="adapter_place 'roof' is unknown"):
        TuneOptions(adapter_place="roof")  # type: ignore[arg-type]
    with pytest.raises(TuneError, match="adapter_alpha is 0"):
        TuneOptions(adapter_alpha=0)


def encoder(budget: str = "50%") -> tuple[nn.Module, nn.Module, list[Batch]]:
    """A compressed BERT of two blocks, its dense one, and texts."""
    return copy.deepcopy(_encoder(budget))


@functools.cache
def _encoder(budget: str) -> tuple[nn.Module, nn.Module, list[Batch]]:
    torch.manual_seed(0)
    dense = tiny_models.bert().eval()
    words = torch.randint(4, 17, (12, 8, 9), generator=torch.Generator().manual_seed(2))
    data: list[Batch] = [{"input_ids": w, "attention_mask": torch.ones_like(w)} for w in words]
    module = copy.deepcopy(dense)
    found = profile(module, data)
    chosen = plan(found, budget)
    compress_(module, chosen, found, options=CompressOptions(refit=False))
    return disturbed(module, dense), dense, data


@pytest.mark.parametrize("scope", ["factors", "vectors", "all"])
def test_the_first_blocks_and_what_comes_before_them_can_be_left_alone(scope: Scope) -> None:
    module, dense, data = encoder()
    before = state(module)
    options = replace(SHORT, steps=10, scope=scope, skip_first=1)
    report = tune_(module, dense, data, options)
    assert report.end < report.start
    moved = {name for name, value in state(module).items() if not value.equal(before[name])}
    assert any(".layer.1." in name for name in moved)
    assert not [name for name in moved if "embeddings" in name or ".layer.0." in name]


@pytest.mark.parametrize("adapter", [None, "lora"])
def test_blocks_can_be_skipped_at_random(adapter: str | None) -> None:
    if adapter is not None:
        pytest.importorskip("peft")
    options = replace(SHORT, steps=10, skip_first=1, random_skip=True, adapter=adapter)
    ends = []
    for _ in range(2):
        module, dense, data = encoder()
        before = state(module)
        report = tune_(module, dense, data, options)
        assert report.end < report.start
        moved = {name for name, value in state(module).items() if not value.equal(before[name])}
        assert any(".layer.0." in name for name in moved)
        assert any(".layer.1." in name for name in moved)
        ends.append(report.end)
    assert ends[0] == ends[1]
    module, dense, data = encoder()
    always = tune_(module, dense, data, replace(options, skip_first=0, random_skip=False))
    assert always.end != ends[0], "nothing was ever skipped"


def test_skipping_every_block_is_refused() -> None:
    module, dense, data = encoder()
    with pytest.raises(TuneError, match="skip-first 2: the network has 2 blocks; take 0 to 1"):
        tune_(module, dense, data, replace(SHORT, skip_first=2))
    with pytest.raises(TuneError, match="set skip_first"):
        TuneOptions(random_skip=True)
    with pytest.raises(TuneError, match="skip_first is -1"):
        TuneOptions(skip_first=-1)


def test_an_adapter_that_ended_in_nan_is_taken_out_all_the_same() -> None:
    pytest.importorskip("peft")
    module, dense = pair()
    before = state(module)

    def broken(network: nn.Module, batch: Batch) -> Tensor:
        with torch.no_grad():
            for parameter in network.parameters():
                if parameter.requires_grad:
                    parameter.fill_(float("nan"))
        raise RuntimeError("gone")

    options = replace(SHORT, objective="task", adapter="lora", adapter_rank=2)
    calls = iter(range(100))

    def task(network: nn.Module, batch: Batch) -> Tensor:
        if next(calls) > 5:
            broken(network, batch)
        scores = call(network, batch)
        assert isinstance(scores, Tensor)
        return scores.square().mean()

    with pytest.raises(TuneError, match="gone"):
        tune_(module, dense, batches(), options, task=task)
    assert same(state(module), before)


def test_an_adapter_is_taken_out_when_something_else_goes_wrong() -> None:
    pytest.importorskip("peft")
    module, dense = pair()
    before, calls = state(module), 0

    def broken(network: nn.Module, batch: Batch) -> Tensor:
        nonlocal calls
        calls += 1
        if calls > 5:
            raise RuntimeError("gone")
        scores = call(network, batch)
        assert isinstance(scores, Tensor)
        return scores.square().mean()

    options = replace(SHORT, objective="task", adapter="lora", adapter_rank=2)
    with pytest.raises(TuneError, match="gone"):
        tune_(module, dense, batches(), options, task=broken)
    assert same(state(module), before)


# ---- stopped and resumed --------------------------------------------------------------------


class Stopped(Exception):
    pass


class Stopping(CheckpointFolder):
    """Stops right after the checkpoint of a step, as a kill would."""

    def __init__(self, folder: Path, at: int) -> None:
        super().__init__(folder)
        self.at = at

    def put(self, kind: str, name: str, entry: Entry) -> None:
        super().put(kind, name, entry)
        if entry.values["state"]["step"] == self.at:
            raise Stopped


@pytest.mark.parametrize("optimiser", ["adamw", "lora-plus", "lora-rite", "subspace"])
def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path, optimiser: str) -> None:
    options = TuneOptions(steps=40, optimiser=optimiser)
    whole, dense = pair()
    expected = tune_(whole, dense, batches(), options)
    for at in (10, 30):
        module, _ = pair()
        with pytest.raises(Stopped):
            tune_(module, dense, batches(), options, store=Stopping(tmp_path / str(at), at))
        module, _ = pair()
        report = tune_(
            module, dense, batches(), options, store=CheckpointFolder(tmp_path / str(at))
        )
        assert report == expected
        assert same(state(module), state(whole))


def test_steps_between_checkpoints_are_done_again_to_the_same_bits(tmp_path: Path) -> None:
    whole, dense = pair()
    expected = tune_(whole, dense, batches(), SHORT)
    steps = 0

    class Counting:
        def advance(self, amount: int = 1) -> None:
            nonlocal steps
            steps += amount
            if steps == 17:
                raise Stopped

        def say(self, text: str) -> None:
            pass

    class Watching:
        def stage(self, name: str, total: int) -> object:
            from contextlib import nullcontext

            return nullcontext(Counting())

    module, _ = pair()
    with pytest.raises(Stopped):
        tune_(
            module,
            dense,
            batches(),
            SHORT,
            progress=Watching(),  # type: ignore[arg-type]
            store=CheckpointFolder(tmp_path),
        )
    module, _ = pair()
    report = tune_(module, dense, batches(), SHORT, store=CheckpointFolder(tmp_path))
    assert report == expected
    assert same(state(module), state(whole))


def test_a_finished_training_is_taken_over(tmp_path: Path) -> None:
    module, dense = pair()
    expected = tune_(module, dense, batches(), SHORT, store=CheckpointFolder(tmp_path))
    again, _ = pair()
    report = tune_(again, dense, batches(), SHORT, store=CheckpointFolder(tmp_path))
    assert report == expected
    assert same(state(again), state(module))


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", None])
def test_a_checkpoint_that_does_not_fit_is_passed_over(
    tmp_path: Path, damage: bytes | None
) -> None:
    store = CheckpointFolder(tmp_path)
    module, dense = pair()
    options = SHORT if damage is not None else replace(SHORT, seed=4)
    tune_(module, dense, batches(), options, store=store)
    if damage is not None:
        store.path("tuning").write_bytes(damage)
    module, _ = pair()
    expected, _ = pair()
    report = tune_(module, dense, batches(), SHORT, store=store)
    assert report == tune_(expected, dense, batches(), SHORT)


def test_minutes_become_steps_once(tmp_path: Path) -> None:
    options = replace(SHORT, steps=None, minutes=0.01)
    module, dense = pair()
    report = tune_(module, dense, batches(), options, store=CheckpointFolder(tmp_path))
    assert report.steps >= 1
    module, _ = pair()
    again = tune_(module, dense, batches(), options, store=CheckpointFolder(tmp_path))
    assert again == report
    module, _ = pair()
    both = tune_(module, dense, batches(), replace(options, steps=2))
    assert both.steps <= 2


# ---- the parts ------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_no_example_both_teaches_and_judges(count: int) -> None:
    data = [{"x": torch.arange(10 * i, 10 * i + 10)} for i in range(count)]
    parted = split(data)
    train = torch.cat([b["x"] for b in parted.train]).tolist()
    judging = torch.cat([b["x"] for b in parted.held_out]).tolist()
    assert not set(train) & set(judging)
    assert sorted(train + judging) == list(range(10 * count))
    assert len(judging) >= len(train) // 5


def test_one_example_is_too_few() -> None:
    with pytest.raises(DataError, match="give more"):
        split([{"x": torch.zeros(1, 3)}])


def test_every_batch_comes_once_before_any_comes_again() -> None:
    module, dense = pair()
    with requiring_only(module, parameters_of(module, replaced_layers(module, dense), "all")):
        setup = prepared(module, dense, replaced_layers(module, dense), batches(), SHORT)
        count = len(setup.split.train)
        for turn in range(3):
            steps = range(turn * count, (turn + 1) * count)
            places = [place for step in steps for _, place, _ in draws(setup, step)]
            assert sorted(p for p in places if p is not None) == list(range(count))


def test_accumulation_is_one_step_on_all_batches() -> None:
    module, dense = pair()
    data, layers = batches(), replaced_layers(module, dense)
    count = len(split(data).train)
    options = replace(SHORT, accumulation=count)
    with requiring_only(module, parameters_of(module, layers, "vectors")):
        setup = prepared(module, dense, layers, data, options)
        losses = [setup.objective.loss(b, torch.Generator()) for b in setup.split.train]
        mean = torch.stack(losses).mean()
        expected = torch.autograd.grad(mean, list(setup.parameters.values()))
        loss = accumulate_(setup, 0, setup.scaler())
        found = [parameter.grad for parameter in setup.parameters.values()]
    assert loss == pytest.approx(float(mean.detach()), rel=FP32)
    for gradient, wanted in zip(found, expected, strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=0, atol=FP32)


def test_texts_that_come_again_have_noise_every_other_time_where_words_are_many() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Embedding(2000, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)).eval()
    generator = torch.Generator().manual_seed(0)
    data = [{"input": torch.randint(2000, (4, 6), generator=generator)} for _ in range(10)]

    class Named(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, input_ids: Tensor) -> Tensor:
            out: Tensor = self.network(input_ids)
            return out

    texts = [{"input_ids": batch["input"]} for batch in data]
    large = Named(dense)
    layers = ("network.1",)
    for asked, share in ((None, 0.5), (False, 0.0)):
        options = replace(SHORT, token_noise=asked)
        setup = prepared(large, copy.deepcopy(large), layers, texts, options)
        count = len(setup.split.train)
        drawn = [(b, p) for step in range(3 * count) for b, p, _ in draws(setup, step)]
        assert sorted(p for _, p in drawn[:count] if p is not None) == list(range(count))
        again = [p for _, p in drawn[count:]]
        assert again.count(None) / len(again) == share
        whole = {tuple(b["input_ids"].flatten().tolist()) for b in setup.split.train}
        assert all(
            (tuple(b["input_ids"].flatten().tolist()) in whole) == (p is not None) for b, p in drawn
        )


def test_the_rate_warms_up_and_ends_near_zero() -> None:
    for steps in (1, 2, 10, 500):
        rates = [factor(step, steps) for step in range(steps)]
        peak = rates.index(max(rates))
        assert all(0 < rate <= 1 for rate in rates)
        assert rates[: peak + 1] == sorted(rates[: peak + 1])
        assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert factor(499, 500) < 1e-4


def test_blocks_are_watched_and_what_is_in_none_watches_itself() -> None:
    _, dense = pair()
    (batch, *_) = batches()
    with torch.no_grad():
        readout, _ = choose_readout(call(dense, batch))
    layers = ("blocks.0.up", "blocks.0.down", "blocks.2.up", "head")
    # the head's output is read out anyway
    assert hidden_points(dense, layers, batch, readout) == ("blocks.0", "blocks.2")
    mlp = networks.Mlp().eval()
    (batch, *_) = networks.mlp_batches()
    assert hidden_points(mlp, ("first", "second"), batch, readout) == ("first",)


def test_hidden_features_are_seen_before_they_are_changed_in_place() -> None:
    torch.manual_seed(0)
    module = networks.InPlaceConvNet().eval()
    x = torch.randn(3, 2, 5, 5)
    with torch.no_grad(), watching([module.first]) as seen:
        module(x)
    ((output,),) = seen
    assert bool((output < 0).any())
    assert output.equal(module.first(x))


def test_padding_makes_no_difference_to_hidden_features() -> None:
    generator = torch.Generator().manual_seed(0)
    f, g = (torch.randn(2, 4, 5, generator=generator) for _ in range(2))
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 0]])
    batch = {"attention_mask": mask}
    first = hidden_difference(f, g, batch)
    g[mask == 0] = 1e3
    f[mask == 0] = -1e3
    assert hidden_difference(f, g, batch).equal(first)
    kept = mask.bool()
    spread = (f[kept] - f[kept].mean(0)).square().sum()
    expected = (f[kept] - g[kept]).square().sum() / spread
    assert float(first) == pytest.approx(float(expected), rel=FP32)


# ---- what is refused ------------------------------------------------------------------------


def refusals() -> list[tuple[Callable[[], object], str]]:
    module, dense = pair()
    shallow = copy.copy(dense)
    return [
        (lambda: tune_(dense, copy.deepcopy(dense), batches()), "compress the module first"),
        (lambda: tune_(module, dense, batches(), TuneOptions(objective="x")), "choose distill"),
        (lambda: tune_(module, dense, batches(), TuneOptions(optimiser="x")), "choose adamw"),
        (lambda: tune_(module, dense, batches(), TuneOptions(adapter="x")), "choose lora"),
        (lambda: TuneOptions(steps=0), "1 or more"),
        (lambda: TuneOptions(minutes=-1), "above 0"),
        (lambda: TuneOptions(scope="x"), "choose factors"),  # type: ignore[arg-type]
        (lambda: tune_(module, shallow, batches(), TuneOptions(objective="task")), "--task"),
        (lambda: tune_(module, dense, batches(), TuneOptions(precision="bf16")), "use fp32"),
        (lambda: tune_(module, dense, batches(), TuneOptions(token_noise=True)), "token noise"),
    ]


@pytest.mark.parametrize("case", range(10))
def test_what_cannot_be_tuned_is_refused_with_the_next_step(case: int) -> None:
    attempt, words = refusals()[case]
    with pytest.raises(TuneError, match=words):
        attempt()


def test_networks_that_share_parameters_are_refused() -> None:
    module, dense = pair()
    module.get_submodule("blocks.0").norm = dense.get_submodule("blocks.0").norm
    with pytest.raises(TuneError, match="deepcopy"):
        tune_(module, dense, batches(), SHORT)


def test_the_public_names_are_there() -> None:
    assert lrcompress.tune_ is tune_
    assert lrcompress.TuneOptions is TuneOptions


# ---- with Hugging Face's Trainer ------------------------------------------------------------


class Labelled(nn.Module):
    """The small network with a loss, as Trainer wants it."""

    def __init__(self, network: nn.Module, *, scale: float) -> None:
        super().__init__()
        self.network, self.scale = network, scale

    def forward(self, x: Tensor, labels: Tensor | None = None) -> dict[str, Tensor]:
        scores = self.network(x)
        if labels is None:
            return {"logits": scores}
        loss = torch.nn.functional.kl_div(scores.log_softmax(-1), labels, reduction="batchmean")
        return {"loss": self.scale * loss, "logits": scores}


def trained(folder: Path, *, scale: float) -> tuple[Labelled, Labelled, object]:
    """Run the example of docs/tuning.md."""
    small, large = pair()
    module, dense = Labelled(small, scale=scale), Labelled(large, scale=scale)
    parted = split(batches())
    with torch.no_grad():
        rows = [{"x": x, "labels": large(x).softmax(-1)} for b in parted.train for x in b["x"]]
    page = (Path(__file__).parents[2] / "docs" / "tuning.md").read_text(encoding="utf-8")
    (example,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    names = {"module": module, "dense": dense, "held_out": parted.held_out, "rows": rows}
    names["folder"] = str(folder)
    exec(example, names)
    return module, dense, names["best"]


def test_trainer_ends_at_the_best_held_out_point(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    module, dense, callback = trained(tmp_path, scale=1.0)
    history = callback.history  # type: ignore[attr-defined]
    assert [entry.step for entry in history] == [0, 10, 20, 25]
    end = divergence(module, dense, list(split(batches()).held_out))
    assert end == min(entry.value for entry in history) < history[0].value


def test_trainer_that_only_harms_ends_where_it_began(tmp_path: Path) -> None:
    pytest.importorskip("accelerate")
    module, _, callback = trained(tmp_path, scale=-1.0)
    small, _ = pair()
    assert callback.history[-1].value > callback.history[0].value  # type: ignore[attr-defined]
    assert same(state(module.network), state(small))


def test_trainer_is_stopped_where_a_size_changes(tmp_path: Path) -> None:
    from lrcompress.tuning.hf_callback import keep_best

    module, dense = pair()
    callback = keep_best(module, dense, batches(2))

    class At:
        global_step = 0

    callback.on_train_begin(None, At, None)
    head = module.get_submodule("head")
    head.bias = None  # type: ignore[assignment]
    with pytest.raises(TuneError, match="size changed"):
        callback.on_train_end(None, type("End", (), {"global_step": 3}), None)
