"""Claims of the training objectives: what each makes small, and what it refuses."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import networks
import pytest
import torch
from networks import feature_batches, token_batches
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.errors import DataError, TuneError
from lrcompress.network.batches import Batch, batch_size
from lrcompress.network.call import call
from lrcompress.network.readout import choose_readout
from lrcompress.planning.planner import plan
from lrcompress.profiling.profiler import profile
from lrcompress.tuning.build_setup import held_out_loss
from lrcompress.tuning.losses import TUNING_OBJECTIVES, Setting, TuningObjective
from lrcompress.tuning.losses.mae import masked
from lrcompress.tuning.losses.mlm import MaskedTokens
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.split import replaced_layers, split
from lrcompress.tuning.tune import tune_

FP32 = 1e-5  # a few products of width ten in float32
SHORT = TuneOptions(steps=30, learning_rate=3e-3)


class Pixels(nn.Module):
    """(examples, 2, 8, 8) → class scores."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.Sequential(
            nn.Conv2d(2, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1), nn.ReLU()
        )
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.blocks(x).mean((-1, -2)))
        return out


def text(count: int = 10) -> list[Batch]:
    return token_batches(count, 8, 7)


def images(count: int = 10) -> list[Batch]:
    return feature_batches(count, 8, 2, 8, 8)


def pair(dense: nn.Module, data: list[Batch]) -> tuple[nn.Module, nn.Module]:
    dense.eval()
    module = copy.deepcopy(dense)
    found = profile(module, data)
    compress_(module, plan(found, "60%"), found, options=CompressOptions(refit=False))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():  # what was lost can be found again
        for name in replaced_layers(module, dense):
            for factor in module.get_submodule(name).parameters():
                if factor.dim() > 1:
                    factor += 0.5 * factor.std() * torch.randn(factor.shape, generator=generator)
    return module, dense


def language() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return pair(networks.Attention(16, tied=False), text())


def taught() -> tuple[nn.Module, nn.Module]:
    """A dense network that knows the texts, next tokens and hidden ones: one to come back to."""
    torch.manual_seed(0)
    dense = networks.Attention(16, tied=False)
    optimiser = torch.optim.Adam(dense.parameters(), 1e-2)
    for step in range(120):
        for name in ("clm", "mlm"):
            made = objective(name, (dense, dense), text(), mask_token=0)
            optimiser.zero_grad()
            made.loss(text()[step % 10], generator(step)).backward()
            optimiser.step()
    return pair(dense, text())


def vision() -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    return pair(Pixels(), images())


def objective(
    name: str, pair: tuple[nn.Module, nn.Module], data: list[Batch], **options: Any
) -> TuningObjective:
    module, dense = pair
    with torch.no_grad():
        readout, _ = choose_readout(call(dense, data[0]))
    asked = TuneOptions(objective=name, **options)
    made = TUNING_OBJECTIVES[name](Setting(module, dense, readout, (), asked))
    made.check(data)
    return made


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def deviation(share: float, count: int) -> float:
    """The standard deviation of a share of `count` independent draws."""
    return (share * (1 - share) / count) ** 0.5


def square(module: nn.Module, batch: Batch) -> Tensor:
    scores = call(module, batch)
    scores = scores["logits"] if isinstance(scores, dict) else scores
    assert isinstance(scores, Tensor)
    return scores.square().mean()


CASES: list[tuple[str, Callable[[], tuple[nn.Module, nn.Module]], Callable[[], list[Batch]]]] = [
    ("distill", language, text),
    ("distill", vision, images),
    ("clm", taught, text),
    ("mlm", taught, text),
    ("mae", vision, images),
    ("task", vision, images),
]


@pytest.mark.parametrize(("name", "networks_of", "data"), CASES)
def test_each_objective_gets_smaller_on_held_out_examples(
    name: str,
    networks_of: Callable[[], tuple[nn.Module, nn.Module]],
    data: Callable[[], list[Batch]],
) -> None:
    module, dense = networks_of()
    options = replace(SHORT, objective=name, mask_token=0)
    report = tune_(module, dense, data(), options, task=square)
    assert report.improved
    assert report.objective == name
    assert report.measure == ("task loss" if name == "task" else "kl divergence")
    assert all(loss == loss for loss in report.losses)


def test_every_objective_has_a_case() -> None:
    assert {name for name, *_ in CASES} == set(TUNING_OBJECTIVES)


@pytest.mark.parametrize(("name", "networks_of", "data"), CASES[:-1])
def test_padding_and_nothing_else_is_free(
    name: str,
    networks_of: Callable[[], tuple[nn.Module, nn.Module]],
    data: Callable[[], list[Batch]],
) -> None:
    made = objective(name, networks_of(), data(), mask_token=0)
    (batch, *_) = data()
    whole = made.loss(batch, generator()).detach()
    if "attention_mask" not in batch:
        changed = {"x": batch["x"] + 1}
        assert not torch.isclose(made.loss(changed, generator()), whole, rtol=FP32)
        return
    padding = batch["attention_mask"] == 0
    assert bool(padding.any())
    filled = {**batch, "input_ids": torch.where(padding, 3, batch["input_ids"])}
    torch.testing.assert_close(made.loss(filled, generator()), whole, rtol=FP32, atol=0)
    other = {**batch, "input_ids": torch.where(padding, 0, (batch["input_ids"] + 1) % 11)}
    assert not torch.isclose(made.loss(other, generator()), whole, rtol=FP32)


def test_distillation_starts_at_one_for_each_term_and_is_zero_for_the_dense_network() -> None:
    module, dense = language()
    data = text(4)
    made = objective("distill", (module, dense), data, hidden=0.0)
    losses = [float(made.loss(b, generator()).detach()) for b in data]
    assert sum(losses) / len(losses) == pytest.approx(1, rel=FP32)
    itself = objective("distill", (dense, dense), data)
    assert float(itself.loss(data[0], generator()).detach()) == pytest.approx(0, abs=FP32)


def test_a_lesson_that_is_kept_is_the_lesson() -> None:
    made = objective("distill", language(), text(2))
    (batch, _) = text(2)
    first = made.loss(batch, generator(), place=0)
    assert made.loss(batch, generator(), place=0).equal(first)
    assert made.loss(batch, generator()).equal(first)


def test_the_next_token_s_loss_is_torch_s_cross_entropy() -> None:
    module, dense = language()
    made = objective("clm", (module, dense), text())
    (batch, *_) = text()
    logits = call(module, batch)["logits"]  # type: ignore[index]
    targets = batch["input_ids"][:, 1:].clone()
    targets[batch["attention_mask"][:, 1:] == 0] = -100
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten())
    torch.testing.assert_close(made.loss(batch, generator()), expected, rtol=FP32, atol=0)


def test_fifteen_percent_of_the_tokens_are_asked_for_and_most_of_them_hidden() -> None:
    made = objective("mlm", language(), text(), mask_token=0)
    assert isinstance(made, MaskedTokens)
    ids = torch.randint(1, 11, (200, 50), generator=generator())
    mask = (torch.arange(50) < 40).long().expand(200, 50)
    hidden, asked = made._masked({"input_ids": ids, "attention_mask": mask}, generator(1))
    shown = hidden["input_ids"]
    count = int(asked.sum())
    assert count / 8000 == pytest.approx(0.15, abs=3.5 * deviation(0.15, 8000))
    assert not bool(asked[:, 40:].any())
    assert shown[~asked].equal(ids[~asked])
    hidden_share = float((shown[asked] == 0).float().mean())
    assert hidden_share == pytest.approx(0.8, abs=4 * deviation(0.8, count))
    kept = float((shown[asked] == ids[asked]).float().mean())
    share = 0.1 + 0.1 / 10  # a tenth stays, and of a tenth a tenth is drawn anew by chance
    assert kept == pytest.approx(share, abs=4 * deviation(share, count))


@pytest.mark.parametrize("shape", [(40, 30), (10, 20, 6), (10, 2, 28, 28), (10, 2, 4, 4)])
def test_about_a_third_of_an_input_is_hidden_whole_positions_at_a_time(
    shape: tuple[int, ...],
) -> None:
    x = torch.randn(shape, generator=generator())
    batch = {"x": x, "labels": torch.arange(len(x))}
    shown = masked(batch, generator(1))
    assert shown["labels"].equal(batch["labels"])
    gone = shown["x"] != x
    # a draw for each feature, position or patch
    draws = {2: x.numel(), 3: len(x) * shape[1], 4: len(x) * min(7, shape[-1]) ** 2}[x.dim()]
    assert float(gone.float().mean()) == pytest.approx(0.3, abs=4 * deviation(0.3, draws))
    if len(shape) == 3:
        assert gone.all(-1).equal(gone.any(-1))
    if len(shape) == 4:
        assert gone.all(1).equal(gone.any(1))
    assert masked(batch, generator(1))["x"].equal(shown["x"])


def test_the_held_out_loss_is_the_mean_over_examples_and_always_the_same() -> None:
    made = objective("mlm", language(), text(), mask_token=0)
    parted = split(text())
    assert held_out_loss(made, parted) == held_out_loss(made, parted)
    parts = [
        float(made.loss(b, generator(place)).detach()) * batch_size(b)
        for place, b in enumerate(parted.held_out)
    ]
    assert held_out_loss(made, parted) == pytest.approx(sum(parts) / parted.held_out_examples)


REFUSED: list[tuple[str, Callable[[], list[Batch]], type[Exception], str]] = [
    ("clm", images, DataError, "needs texts"),
    ("mlm", images, DataError, "needs texts"),
    ("mlm", text, TuneError, "--mask-token"),
    ("mae", text, DataError, "mlm for texts"),
    ("task", text, TuneError, "--task"),
]


@pytest.mark.parametrize(("name", "data", "error", "words"), REFUSED)
def test_what_does_not_suit_the_data_is_refused(
    name: str, data: Callable[[], list[Batch]], error: type[Exception], words: str
) -> None:
    networks_of = language() if data is text else vision()
    with pytest.raises(error, match=words):
        objective(name, networks_of, data())


def test_embeddings_are_no_logits() -> None:
    class Embedding(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.layer = nn.Embedding(11, 8), nn.Linear(8, 8)

        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
            out: Tensor = self.layer(self.table(input_ids))
            return out

    module = Embedding()
    for name in ("clm", "mlm"):
        with pytest.raises(TuneError, match="use distill"):
            objective(name, (module, module), text(), mask_token=0)


@pytest.mark.parametrize(
    ("task", "words"),
    [
        (lambda module, batch: 3.0, "float, not a scalar"),
        (lambda module, batch: torch.zeros(2), r"tensor \(2,\)"),
        (lambda module, batch: batch["nothing"], "KeyError"),
    ],
)
def test_a_task_that_gives_no_loss_is_named(
    task: Callable[[nn.Module, Batch], Tensor], words: str
) -> None:
    module, dense = vision()
    with pytest.raises(TuneError, match=words):
        tune_(module, dense, images(), replace(SHORT, objective="task"), task=task)
    assert replaced_layers(module, dense)
