"""Claims of the readout: each kind of output is recognised and measured in its own divergence."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from drawn_outputs import drawn_outputs
from networks import feature_batches
from torch import Tensor, nn
from torch.nn import functional

from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.errors import DataError
from lrcompress.formats.profile_json import load_profile, save_profile
from lrcompress.network.agreement import agree
from lrcompress.network.batches import Batch
from lrcompress.network.objectives import OBJECTIVES, smoothing
from lrcompress.network.objectives.weighted_sum import Part, WeightedSum, packed
from lrcompress.network.readout import Readout, choose_readout
from lrcompress.network.readout_search import find_readout
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile, profile_readout
from lrcompress.profiling.profiler import profile
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.tune import tune_

FLOAT32 = 2e-5  # sums of a few hundred terms, relative to the largest


class Network(nn.Module):
    """Some layers and what is made of their outputs."""

    def __init__(self, forward: Callable[[nn.ModuleList, Tensor], object], *layers: nn.Module):
        super().__init__()
        self.layers = nn.ModuleList(layers)
        self._forward = forward

    def forward(self, x: Tensor) -> object:
        return self._forward(self.layers, x)


class ModelOutput(OrderedDict[str, object]):
    """As Hugging Face's class of this name."""


def features(examples: int = 6) -> list[Batch]:
    return feature_batches(3, examples, 5)


def images() -> list[Batch]:
    return feature_batches(3, 4, 2, 6, 7)


def sequences() -> list[Batch]:
    """(examples, channels, positions), of two lengths."""
    return [*feature_batches(2, 4, 3, 9), *feature_batches(1, 4, 3, 12, seed=1)]


def square_sequences() -> list[Batch]:
    """As many positions as examples."""
    return feature_batches(2, 4, 3, 4)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    batches: Callable[[], list[Batch]]
    objective: str
    shape: tuple[int, ...]  # of what the readout gives for the first batch
    assumed: bool = False
    taken_for: str = ""


def conv(channels: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, channels, 1))


def one_unit() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 1))


CASES = {
    "two classes": Case(
        lambda: Network(lambda f, x: f[0](x), nn.Linear(5, 2)), features, "kl", (6, 2), True
    ),
    "softmax": Case(
        lambda: Network(lambda f, x: f[0](x).softmax(-1), nn.Linear(5, 4)),
        features, "probabilities", (6, 4),
    ),
    "averaged softmax": Case(
        lambda: Network(
            lambda f, x: (f[0](x).softmax(-1) + f[1](x).softmax(-1)) / 2,
            nn.Linear(5, 4), nn.Linear(5, 4),
        ),
        features, "probabilities", (6, 4),
    ),
    "several labels": Case(
        lambda: Network(lambda f, x: torch.sigmoid(f[0](x)), nn.Linear(5, 4)),
        features, "bernoulli-probabilities", (6, 4),
    ),
    "one of two softmax classes": Case(
        lambda: Network(lambda f, x: f[0](x).softmax(-1)[:, 1], nn.Linear(5, 2)),
        features, "bernoulli-probabilities", (6, 1),
    ),
    "text map": Case(
        lambda: Network(lambda f, x: torch.sigmoid(f[0](x)), conv(1)),
        images, "bernoulli-probabilities", (4, 6, 7, 1),
    ),
    "text map, enlarged": Case(
        lambda: Network(
            lambda f, x: functional.interpolate(torch.sigmoid(f[0](x)), scale_factor=2), conv(1)
        ),
        images, "bernoulli-probabilities", (4, 12, 14, 1),
    ),
    "text map of logits": Case(
        lambda: Network(lambda f, x: f[0](x), conv(1)), images, "bernoulli", (4, 6, 7, 1), True
    ),
    "depth map": Case(
        lambda: Network(lambda f, x: functional.softplus(f[0](x)), conv(1)),
        images, "squared", (4, 6, 7, 1), True, "regression",
    ),
    "segmentation": Case(
        lambda: Network(lambda f, x: f[0](x), conv(3)), images, "kl", (4, 6, 7, 3), True
    ),
    "segmentation, softmax": Case(
        lambda: Network(lambda f, x: f[0](x).softmax(1), conv(3)),
        images, "probabilities", (4, 6, 7, 3),
    ),
    "channels of yes or no": Case(
        lambda: Network(lambda f, x: torch.sigmoid(f[0](x)), conv(3)),
        images, "bernoulli-probabilities", (4, 6, 7, 3),
    ),
    "crnn": Case(
        lambda: Network(
            lambda f, x: f[0](x.permute(2, 0, 1)).log_softmax(-1), nn.Linear(3, 5)
        ),
        sequences, "kl", (4, 9, 5),
    ),
    "crnn, positions as many as examples": Case(
        lambda: Network(
            lambda f, x: f[0](torch.cat([x, x[..., :0]], -1).permute(2, 0, 1)).log_softmax(-1),
            nn.Linear(3, 5),
        ),
        square_sequences, "kl", (4, 4, 5),
    ),
    "classes before positions": Case(
        lambda: Network(lambda f, x: f[0](x), nn.Conv1d(3, 5, 1)),
        sequences, "kl", (4, 9, 5), True,
    ),
    "classes before positions, one length": Case(
        lambda: Network(lambda f, x: f[0](x).relu() + 1, nn.Conv1d(3, 5, 1)),
        square_sequences, "kl", (4, 4, 5), True,
    ),
    "unit embedding": Case(
        lambda: Network(lambda f, x: functional.normalize(f[0](x), dim=-1), nn.Linear(5, 7)),
        features, "cosine", (6, 7),
    ),
    "named embedding": Case(
        lambda: Network(lambda f, x: {"face_embedding": f[0](x)}, nn.Linear(5, 7)),
        features, "cosine", (6, 7),
    ),
    "regression": Case(
        lambda: Network(lambda f, x: f[0](x), one_unit()),
        features, "squared", (6, 1), True, "regression",
    ),
    "regression without a dimension": Case(
        lambda: Network(lambda f, x: f[0](x)[:, 0], one_unit()),
        features, "squared", (6, 1), True, "regression",
    ),
    "a single example": Case(
        lambda: Network(lambda f, x: f[0](x).transpose(0, 1), nn.Linear(5, 3)),
        lambda: features(1), "kl", (1, 3), True,
    ),
    "named logits": Case(
        lambda: Network(
            lambda f, x: ModelOutput(logits=f[0](x), hidden_states=(x, x)), nn.Linear(5, 4)
        ),
        features, "kl", (6, 4),
    ),
    "encoder": Case(
        lambda: Network(
            lambda f, x: ModelOutput(last_hidden_state=f[0](x)[:, None], pooler_output=f[0](x)),
            nn.Linear(5, 4),
        ),
        features, "cosine", (6, 1, 4),
    ),
}  # fmt: skip
each_case = pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())


def made(case: Case) -> nn.Module:
    torch.manual_seed(0)
    return case.make().eval()


@each_case
def test_the_kind_of_an_output_is_recognised(case: Case) -> None:
    module, batches = made(case), case.batches()
    readout, warnings = find_readout(module, batches)
    (head,) = readout.heads
    assert head.objective == case.objective
    assert bool(warnings) == head.assumed == case.assumed
    assert case.taken_for in head.taken_for
    outputs, weights = readout(module(**batches[0]), batches[0])
    assert tuple(outputs.shape) == case.shape
    assert weights.shape == outputs.shape[:-1]
    assert f"divergence {case.objective}" in readout.lines[0]
    for warning in warnings:
        assert "--objective" in warning


@each_case
def test_every_layer_gets_a_gradient_and_a_divergence_that_falls(case: Case) -> None:
    module, batches = made(case), case.batches()
    found = profile(module, batches, ProfileOptions(trials=False))
    assert not any("gradient" in left.reason for left in found.left_alone)
    for layer in found.layers:
        assert layer.loss_of_removal("two-sided") > 1e-6
    readout = found.readout
    assert readout is not None
    outputs, weights = readout(module(**batches[0]), batches[0])
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    other, _ = readout(module(**batches[0]), batches[0])
    divergence = readout.objective.divergence(outputs, other, weights)
    assert divergence.shape == (len(outputs),)
    assert bool((divergence >= -1e-6).all())
    if case.objective != "cosine":  # a longer vector points the same way
        assert float(divergence.detach().sum()) > 1e-6


@each_case
def test_compress_measures_what_the_profile_measured(case: Case, tmp_path: Path) -> None:
    module, batches = made(case), case.batches()
    save_profile(profile(module, batches, ProfileOptions(trials=False)), tmp_path)
    found = load_profile(tmp_path)
    chosen = plan(found, "100%")
    report = compress_(module, chosen, found, batches=batches, options=CompressOptions(refit=False))
    assert report.calibration is not None
    assert abs(report.calibration.mean) <= 1e-5
    chooses = case.objective not in ("cosine", "squared")
    assert report.calibration.top1_agreement == (1.0 if chooses else None)


def test_a_regressions_unit_is_its_variance_over_the_examples() -> None:
    module, batches = made(CASES["regression"]), feature_batches(4, 8, 5)
    readout, _ = find_readout(module, batches)
    outputs = torch.cat([readout(module(**b), b)[0] for b in batches]).detach()
    weights = torch.ones(len(outputs))
    mean = outputs.mean(0, keepdim=True).expand_as(outputs)
    # The mean for every example: an error of the whole variance, halved
    error = readout.objective.divergence(outputs, mean, weights).mean()
    torch.testing.assert_close(float(error), 0.5, rtol=1e-4, atol=0)


# --- several outputs -----------------------------------------------------------------------------


def two_heads(scale: float = 1.0) -> nn.Module:
    torch.manual_seed(0)
    return Network(
        lambda f, x: {"classes": f[0](x), "boxes": scale * f[1](x), "anchors": torch.ones(3, 4)},
        nn.Linear(5, 3),
        nn.Linear(5, 4),
    ).eval()


def test_all_outputs_that_depend_on_the_input_are_measured() -> None:
    found = profile(two_heads(), features(), ProfileOptions(trials=False))
    assert found.readout is not None
    assert [(h.name, h.objective) for h in found.readout.heads] == [
        ("classes", "kl"),
        ("boxes", "squared"),
    ]
    assert found.objective == "weighted-sum"
    assert not found.left_alone
    assert len(found.readout.lines) == 2


def test_no_output_drowns_the_others() -> None:
    """Of two heads, one scaled by a million: both count as before."""
    losses = [
        [
            layer.loss_of_removal("two-sided")
            for layer in profile(two_heads(scale), features(), ProfileOptions(trials=False)).layers
        ]
        for scale in (1.0, 1e6)
    ]
    assert losses[0][1] == pytest.approx(losses[1][1], rel=1e-3)
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-3)
    assert 0.1 < losses[0][0] / losses[0][1] < 10


def test_logits_and_an_embedding_in_a_tuple_are_both_measured() -> None:
    torch.manual_seed(0)
    module = Network(
        lambda f, x: (f[0](x), functional.normalize(f[1](x), dim=-1)),
        nn.Linear(5, 3),
        nn.Linear(5, 4),
    ).eval()
    readout, warnings = find_readout(module, features())
    assert [(h.name, h.objective) for h in readout.heads] == [("0", "kl"), ("1", "cosine")]
    assert len(warnings) == 1  # the logits
    batch = features()[0]
    outputs, weights = readout(module(**batch), batch)
    assert readout.objective.agreement(outputs, outputs, weights) == (6.0, 6.0)


def test_the_named_output_alone_is_measured() -> None:
    options = ProfileOptions(trials=False, outputs=("boxes",))
    found = profile(two_heads(), features(), options)
    assert found.readout is not None
    assert [head.name for head in found.readout.heads] == ["boxes"]
    assert [layer.name for layer in found.layers] == ["layers.1"]
    assert "does not depend" in found.left_alone[0].reason


def test_an_unknown_output_is_refused_with_those_that_exist() -> None:
    with pytest.raises(DataError, match=r"'masks'.*'classes', 'boxes', 'anchors'.*--output-name"):
        find_readout(two_heads(), features(), outputs=("masks",))


def test_a_head_of_a_known_model_output_is_measured_alone_and_the_rest_is_told() -> None:
    module = Network(
        lambda f, x: ModelOutput(logits=f[0](x), pred_boxes=f[1](x)),
        nn.Linear(5, 3),
        nn.Linear(5, 4),
    ).eval()
    readout, warnings = find_readout(module, features())
    assert [head.name for head in readout.heads] == ["logits"]
    assert warnings == ("not measured: pred_boxes (--output-name measures them)",)
    both, _ = find_readout(module, features(), outputs=("logits", "pred_boxes"))
    assert [head.objective for head in both.heads] == ["kl", "squared"]


@pytest.mark.parametrize("objective", ["probabilities", "bernoulli-probabilities"])
def test_probabilities_are_not_asked_of_logits(objective: str) -> None:
    module = made(CASES["two classes"])
    with pytest.raises(DataError, match=r"'output' \(6 x 2\).*needs probabilities.*use"):
        find_readout(module, features(), objective=objective)


def test_a_network_of_one_batch_size_is_read_and_the_layout_is_an_assumption() -> None:
    """Four examples of four positions, and no other number of examples runs."""
    module = Network(
        lambda f, x: f[0](x.reshape(4, 12).reshape(4, 3, 4).permute(2, 0, 1)), nn.Linear(3, 5)
    ).eval()
    readout, (warning,) = find_readout(module, square_sequences())
    assert readout.heads[0].examples_at == 0
    assert "sizes do not distinguish" in warning


# --- the objectives ------------------------------------------------------------------------------


def test_curvature_of_probabilities_is_that_of_their_logits() -> None:
    """J^T H J with J of the softmax or sigmoid is the Hessian at the logits."""
    z = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for of_probabilities, of_logits, function in (
        ("probabilities", "kl", lambda x: x.softmax(-1)),
        ("bernoulli-probabilities", "bernoulli", torch.sigmoid),
    ):
        hessians = [
            torch.autograd.functional.hessian(
                lambda x, name=name, at=at: (
                    OBJECTIVES[name].divergence(at[None], x[None], torch.ones(1)).sum()
                ),
                at.clone(),
            )
            for name, at in ((of_probabilities, function(z)), (of_logits, z))
        ]
        jacobian = torch.autograd.functional.jacobian(function, z)
        found = jacobian.mT @ hessians[0] @ jacobian
        torch.testing.assert_close(found, hessians[1], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["probabilities", "bernoulli", "bernoulli-probabilities"])
@pytest.mark.parametrize("size", [40.0, 1000.0])
def test_extreme_outputs_have_finite_divergences_and_probes(name: str, size: float) -> None:
    z = torch.tensor([[size, -size, 0.0], [-size, size, 0.0]])
    dense, other = z, z.flip(0)
    if name == "probabilities":
        dense, other = dense.softmax(-1), other.softmax(-1)
    elif name == "bernoulli-probabilities":
        dense, other = torch.sigmoid(dense), torch.sigmoid(other)
    objective, weights = OBJECTIVES[name], torch.ones(2)
    other = other.clone().requires_grad_()
    divergence = objective.divergence(dense, other, weights)
    (gradient,) = torch.autograd.grad(divergence.sum(), other)
    probe = objective.probe(dense, weights, torch.Generator().manual_seed(0))
    for values in (divergence, gradient, probe):
        assert bool(torch.isfinite(values).all())
    assert bool((divergence > 1).all())
    assert float(objective.divergence(dense, dense, weights).abs().max()) == 0


def test_probes_of_a_sum_have_the_second_moment_of_its_hessian(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Heads of other shapes, kinds and weights, packed into one tensor."""
    monkeypatch.setattr(smoothing, "SMOOTHING", 0.0)  # the Hessian at the outputs themselves
    f, g = drawn_outputs("kl", 1, 2, 3, seed=0), drawn_outputs("squared", 1, 2, seed=1)
    total = WeightedSum((Part(OBJECTIVES["kl"], 3, 0.7), Part(OBJECTIVES["squared"], 2, 0.2)))
    weights = torch.tensor([[1.0, 0.5]]), torch.ones(1)
    dense, shares = packed([(f, weights[0].ceil()), (g, weights[1])])
    hessian = torch.autograd.functional.hessian(
        lambda x: total.divergence(dense, torch.cat([dense[:, :2], x[None]], 1), shares).sum(),
        dense[0, 2:].clone(),
    )
    draws = 20_000
    many = packed(
        [(f.expand(draws, 2, 3), torch.ones(draws, 2)), (g.expand(draws, 2), torch.ones(draws))]
    )
    v = total.probe(*many, torch.Generator().manual_seed(0)).double()
    assert float(v[:, :2].abs().max()) == 0  # the header is no output
    products = v[:, 2:].unsqueeze(-1) * v[:, 2:].unsqueeze(-2)
    # Five standard errors of a mean of `draws` products, and float32 in the Hessian itself
    error = (products.mean(0) - hessian).abs()
    assert bool((error <= 5 * products.std(0) / draws**0.5 + 1e-5).all())


def test_a_packed_sum_is_the_sum_of_its_parts_whatever_the_positions() -> None:
    parts = (Part(OBJECTIVES["kl"], 3, 0.7), Part(OBJECTIVES["bernoulli"], 1, 0.2))
    for positions in (2, 5):
        shapes = (4, positions, 3), (4, 2, positions, 1)
        dense, other = (
            [(drawn_outputs("kl", *shape, seed=seed), torch.ones(shape[:-1])) for shape in shapes]
            for seed in (0, 1)
        )
        (f, w), (g, _) = packed(dense), packed(other)
        expected = sum(
            part.weight * part.objective.divergence(x, y, weights)
            for part, (x, weights), (y, _) in zip(parts, dense, other, strict=True)
        )
        found = WeightedSum(parts).divergence(f, g, w)
        torch.testing.assert_close(found, expected, rtol=FLOAT32, atol=FLOAT32)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_agreement_is_the_share_of_choices_that_stayed(name: str) -> None:
    dense = drawn_outputs(name, 3, 4, 5, seed=0)
    weights = torch.ones(3, 4)
    weights[0] = 0
    found = OBJECTIVES[name].agreement(dense, dense, weights)
    if name in ("cosine", "squared"):
        assert found is None
        return
    assert found is not None
    agreed, choices = found
    assert agreed == choices == 8 * (5 if "bernoulli" in name else 1)
    other = dense.clone()
    other[1, 0] = 1 - dense[1, 0] if "probabilities" in name else -dense[1, 0]
    changed = OBJECTIVES[name].agreement(dense, other, weights)
    assert changed is not None
    assert changed == (agreed - (5 if "bernoulli" in name else 1), choices)


# --- one readout for all stages ------------------------------------------------------------------


def test_a_profile_without_its_readout_is_read_as_it_was_measured() -> None:
    module, batches = made(CASES["segmentation"]), images()
    found = profile(module, batches, ProfileOptions(trials=False))
    old = replace(found, readout=None)
    chosen = profile_readout(module, old, batches)
    assert found.readout is not None
    assert chosen is not None
    raw = module(**batches[0])
    torch.testing.assert_close(chosen(raw, batches[0])[0], found.readout(raw, batches[0])[0])


def test_tuning_takes_the_profiles_readout() -> None:
    module, dense = two_heads(), two_heads()
    batches = feature_batches(12, 4, 5)
    found = profile(module, batches, ProfileOptions(trials=False))
    compress_(module, plan(found, "60%"), found, options=CompressOptions(refit=False))
    asked = TuneOptions(steps=4, scope="all", learning_rate=1e-3, readout=found.readout)
    report = tune_(module, dense, batches, asked)
    assert report.measure == "weighted-sum divergence"
    assert report.end <= report.start


def test_names_of_hugging_face_need_no_second_look() -> None:
    """What their names say is what one output alone says: the same heads, examples first."""
    for case in ("named logits", "encoder"):
        module, batches = made(CASES[case]), features()
        found, _ = find_readout(module, batches)
        alone, _ = choose_readout(module(**batches[0]))
        assert found == alone


def test_the_two_networks_of_a_run_share_their_readout(tmp_path: Path) -> None:
    found = profile(two_heads(), features(), ProfileOptions(trials=False))
    save_profile(found, tmp_path)
    assert load_profile(tmp_path).readout == found.readout


def lines(found: Profile) -> Sequence[str]:
    assert isinstance(found.readout, Readout)
    return found.readout.lines


def test_what_was_taken_is_said_in_one_line() -> None:
    found = profile(made(CASES["named logits"]), features(), ProfileOptions(trials=False))
    assert lines(found) == ("output 'logits' (6 x 4): logits, divergence kl",)
    assert not [warning for warning in found.warnings if "first choices" not in warning]
    crnn = profile(made(CASES["crnn"]), sequences(), ProfileOptions(trials=False))
    assert lines(crnn) == (
        "output 'output' (9 x 4 x 5): logits (examples along dimension 1), divergence kl; "
        "log-probabilities, which are logits too",
    )


def test_outputs_whose_names_print_alike_are_all_compared() -> None:
    first, second = torch.zeros(2), torch.ones(2)
    assert agree({1: first, "1": second}, {1: first, "1": second})
    assert not agree({1: first, "1": second}, {1: first + 5, "1": second})
    assert not agree({1: first, "1": second}, {1: first, "1": second + 5})
