"""Claims of compressing: the plan is carried out, measured, and goes on after a stop."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import networks
import pytest
import tiny_models
import torch
import transformers
from networks import Function, feature_batches, token_batches
from torch import Tensor, nn

from lrcompress.checkpoint import CheckpointFolder, Entry
from lrcompress.compression import fit
from lrcompress.compression.compress import CompressOptions, compress_
from lrcompress.compression.paired_inputs import Inputs, PairedInputs, layer_calls
from lrcompress.compression.replace import Replacement, install_, showing_originals
from lrcompress.compression.report import CompressReport
from lrcompress.compression.sweep import sweep
from lrcompress.errors import FitError, LrcompressError, ModelError, PlanError
from lrcompress.formats.plan_json import plan_from_json, plan_to_json
from lrcompress.formats.run_json import ModelReference
from lrcompress.layers import describe, replace_
from lrcompress.metrics import METRICS
from lrcompress.network.batches import Batch
from lrcompress.number_formats import Int4
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.plan import Plan
from lrcompress.planning.planner import plan
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import Profile
from lrcompress.profiling.profiler import profile
from lrcompress.sources.compressed_model import load, save_compressed
from lrcompress.sources.loaded_model import LoadedModel
from lrcompress.structures import Dense, Factors, LowRank, Quantised, Structure

# Without the refit every claim about the plan's own fit is exact.
NO_REFIT = CompressOptions(refit=False)
# Factors are rounded to float32: two roundings of 2^-24, through a few layers of width ten.
FP32 = 1e-4


def attention(*, tied: bool = True) -> nn.Module:
    torch.manual_seed(0)
    return networks.Attention(tied=tied).eval()


def tokens() -> list[Batch]:
    return token_batches(3, 4, 6)


def with_structures(
    found: Profile, structure_of: Callable[[str], Structure | None], budget: str = "90%"
) -> Plan:
    """A plan edited by hand; None leaves a layer as the plan has it."""
    record = json.loads(plan_to_json(plan(found, budget)))
    for row in record["layers"]:
        structure = structure_of(row["name"])
        if isinstance(structure, LowRank):
            row["structure"] = {"type": "low_rank", "rank": structure.rank}
        elif structure is not None:
            row["structure"] = {"type": "dense"}
    return plan_from_json(json.dumps(record), found)


def full_rank(found: Profile) -> Plan:
    """Beyond what a plan may ask for: more parameters than the dense model's."""
    chosen = plan(found, "90%")
    layers = (
        replace(row, structure=LowRank(min(row.spec.out_features, row.spec.in_features)))
        for row in chosen.layers
    )
    return replace(chosen, layers=tuple(layers))


def compressed(
    module: nn.Module, batches: list[Batch] | None, budget: str, **fields: object
) -> tuple[nn.Module, Plan, CompressReport]:
    found = profile(module, batches)
    chosen = plan(found, budget)
    module = copy.deepcopy(module)
    options = CompressOptions(refit=False)
    report = compress_(module, chosen, found, batches=batches, options=options, **fields)  # type: ignore[arg-type]
    return module, chosen, report


@torch.no_grad()
def outputs(module: nn.Module, batch: Batch) -> Tensor:
    out = module(**batch)
    if isinstance(out, Tensor):
        return out
    tensor = out["logits"] if "logits" in out else out["last_hidden_state"]
    assert isinstance(tensor, Tensor)
    return tensor


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], list[Batch]]]] = {
    "mlp": (networks.Mlp, lambda: feature_batches(2, 8, 6)),
    "tied attention": (attention, tokens),
    "convolutions": (networks.InPlaceConvNet, lambda: feature_batches(2, 4, 2, 8, 8)),
    "called twice": (networks.Twice, lambda: feature_batches(2, 4, 5)),
    "gpt2": (tiny_models.gpt2, tokens),
    "llama": (tiny_models.llama, tokens),
}
every_model = pytest.mark.parametrize(("make", "batches"), MODELS.values(), ids=MODELS.keys())


@every_model
def test_full_rank_changes_nothing(
    make: Callable[[], nn.Module], batches: Callable[[], list[Batch]]
) -> None:
    torch.manual_seed(0)
    module, data = make().eval(), batches()
    # Plain: a weighted metric forgets the directions that no calibration row has
    found = profile(module, data, ProfileOptions(metric="plain"))
    expected = [outputs(module, batch) for batch in data]
    report = compress_(module, full_rank(found), found, batches=data, options=NO_REFIT)
    assert len(report.layers) == len(found.layers)
    for before, batch in zip(expected, data, strict=True):
        scale = float(before.abs().max())
        torch.testing.assert_close(outputs(module, batch), before, rtol=0, atol=FP32 * scale)
    assert report.calibration is not None
    assert report.calibration.mean <= FP32
    assert report.calibration.examples == found.examples
    if found.objective == "kl":
        assert report.calibration.top1_agreement == 1.0


@every_model
@pytest.mark.parametrize("budget", ["90%", "60%"])
def test_the_module_holds_the_parameters_that_the_plan_promised(
    make: Callable[[], nn.Module], batches: Callable[[], list[Batch]], budget: str
) -> None:
    torch.manual_seed(0)
    module, chosen, report = compressed(make().eval(), batches(), budget)
    assert sum(p.numel() for p in module.parameters()) == chosen.params
    assert chosen.params < chosen.dense_params
    assert report.layers
    for batch in batches():
        assert bool(torch.isfinite(outputs(module, batch)).all())


@every_model
@pytest.mark.parametrize("metric", ["plain", "diagonal", "input-weighted", "two-sided"])
def test_every_layer_loses_what_the_plan_predicted(
    make: Callable[[], nn.Module], batches: Callable[[], list[Batch]], metric: str
) -> None:
    torch.manual_seed(0)
    module = make().eval()
    found = profile(module, batches(), ProfileOptions(trials=False))
    chosen = plan(found, "70%", PlanOptions(metric=metric))
    report = compress_(module, chosen, found, options=NO_REFIT)
    for row in report.layers:
        whole = found[row.name].loss_of_removal(metric)
        # Roots down to sqrt(1e-9) of the largest multiply float64's rounding on both sides
        assert row.fitted_loss == pytest.approx(row.predicted_loss, rel=1e-6, abs=2e-7 * whole)
        assert row.params == chosen[row.name].params
    # losses of the other metrics are in a unit of their own
    comparable = METRICS[chosen.metric].needs_outputs
    assert report.predicted_divergence == (chosen.predicted_loss if comparable else None)


def test_a_larger_budget_diverges_less_and_as_predicted_when_little_is_lost() -> None:
    module, data = attention(tied=False), token_batches(4, 16, 6)
    measured = []
    for budget in ("97%", "85%", "60%"):
        _, _, report = compressed(module, data, budget)
        assert report.calibration is not None
        measured.append(report.calibration.mean)
        if budget == "97%":  # the second-order prediction holds where the change is small
            assert report.predicted_divergence is not None
            assert 0.3 < report.calibration.mean / report.predicted_divergence < 3
    assert 0 < measured[0] < measured[1] < measured[2]


def test_layers_that_the_plan_leaves_dense_are_the_very_same() -> None:
    module, data = attention(tied=False), tokens()
    found = profile(module, data)
    chosen = with_structures(found, lambda name: LowRank(2) if name == "out" else Dense())
    before = dict(module.named_modules())
    report = compress_(module, chosen, found, batches=data, options=NO_REFIT)
    assert [row.name for row in report.layers] == ["out"]
    for name, child in module.named_modules():
        if name and not name.startswith("out"):
            assert child is before[name]
    assert type(module.out).__name__ == "FactorizedLinear"


@pytest.mark.parametrize("kind", ["attention", "gpt2", "llama"])
def test_tied_heads_stay_tied(kind: str) -> None:
    torch.manual_seed(0)
    module = attention() if kind == "attention" else tiny_models.MODELS[kind]().eval()
    (spec,) = [spec for spec in describe(module).layers if spec.tied]
    data = tokens()
    found = profile(module, data)
    chosen = with_structures(found, lambda name: LowRank(3) if name == spec.name else Dense())
    compress_(module, chosen, found, batches=data, options=NO_REFIT)
    embedding, head = module.get_submodule(spec.name), module.get_submodule(spec.tied[0])
    assert head.codes.weight.data_ptr() == embedding.codes.weight.data_ptr()
    assert head.up.weight.data_ptr() == embedding.up.weight.data_ptr()
    torch.testing.assert_close(head.weight, embedding.weight, rtol=0, atol=0)
    assert sum(p.numel() for p in module.parameters()) == chosen.params


def test_a_tied_head_reads_the_stored_table_after_the_dense_network_was_shown() -> None:
    module = attention()
    (spec,) = [spec for spec in describe(module).layers if spec.tied]
    dense, head = module.get_submodule(spec.name), module.get_submodule(spec.tied[0])
    structure = Quantised(Dense(), (Int4(),))
    done = install_(module, spec, structure, structure.empty_factors(spec), None)
    with showing_originals(module, done):
        assert module.get_submodule(spec.name) is dense
        assert module.get_submodule(spec.tied[0]) is head
    assert module.get_submodule(spec.tied[0]).table is module.get_submodule(spec.name)
    assert dense not in list(module.modules())


def test_a_bias_shared_with_a_module_that_never_uses_it_stays_counted_once() -> None:
    config = transformers.BertConfig(
        vocab_size=networks.VOCABULARY,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=24,
        max_position_embeddings=12,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    module, chosen, _ = compressed(transformers.BertForMaskedLM(config).eval(), tokens(), "70%")
    assert sum(p.numel() for p in module.parameters()) == chosen.params


def test_a_bias_that_two_layers_share_stays_shared_and_unmoved(tmp_path: Path) -> None:
    torch.manual_seed(0)
    module, batches = networks.SharesBias().eval(), feature_batches(10, 4, 6)
    before = module.first.bias.clone()
    found = profile(module, batches)
    assert [layer.centred for layer in found.layers] == [False, False, True]
    chosen = plan(found, "60%")
    options = CompressOptions(refit=True)
    report = compress_(module, chosen, found, batches=batches, options=options)
    assert {layer.name for layer in report.layers} >= {"first", "second"}
    assert module.first.bias is module.second.bias
    assert torch.equal(module.first.bias, before)
    assert sum(p.numel() for p in module.parameters()) == chosen.params
    loaded = LoadedModel(module, ModelReference("factory", "networks:SharesBias"))
    save_compressed(module, chosen, loaded, tmp_path, extra={})
    again = load(tmp_path, trust_factory="networks:SharesBias")
    assert again.first.bias is again.second.bias
    assert torch.equal(outputs(again, batches[0]), outputs(module, batches[0]))


def test_a_module_under_two_names_is_replaced_under_both() -> None:
    linear = nn.Linear(6, 6)
    layers = nn.ModuleDict({"a": linear, "b": linear})
    network = Function(layers, lambda f, x: f["b"](torch.tanh(f["a"](x))))
    data = feature_batches(2, 8, 6)
    found = profile(network, data)
    chosen = with_structures(found, lambda name: LowRank(2))
    compress_(network, chosen, found, batches=data, options=NO_REFIT)
    assert layers["a"] is layers["b"]
    assert isinstance(chosen.layers[0].structure, LowRank)
    assert type(layers["a"]).__name__ == "FactorizedLinear"


@pytest.mark.parametrize(
    ("metric", "left_over"),
    # The two-sided mean weighs each row by the square of its gradient, here pure noise: sqrt(2 / 5)
    # of a row's distance from the mean, which over 64 rows and 20 probes is 2 % of their spread
    [("input-weighted", FP32), ("two-sided", 0.04)],
)
def test_moving_the_bias_takes_up_the_mean_of_the_error(metric: str, left_over: float) -> None:
    torch.manual_seed(0)
    network = Function(nn.Linear(6, 5), lambda f, x: f(x))
    data = [{"x": batch["x"] + 2} for batch in feature_batches(4, 16, 6)]
    x = torch.cat([batch["x"] for batch in data])
    errors, means = {}, {}
    for compensated in (True, False):
        options = ProfileOptions(
            metric=metric, objective="squared", bias_compensation=compensated, probes=20
        )
        found = profile(network, data, options)
        module = copy.deepcopy(network)
        chosen = with_structures(found, lambda name: LowRank(2))
        report = compress_(module, chosen, found, batches=data, options=NO_REFIT)
        assert report.layers[0].bias_moved == compensated
        error = (network(x) - module(x)).detach()
        errors[compensated] = float(error.square().mean())
        difference = (network.layer.weight - module.layer.weight).detach()
        # what the bias had to take up, and what it left
        means[compensated] = float((difference @ x.mean(0)).norm()), float(error.mean(0).norm())
    to_take, left = means[True]
    assert left <= left_over * to_take
    assert means[False][0] == pytest.approx(means[False][1], rel=FP32)
    assert errors[True] < errors[False]


def test_the_plain_metric_moves_no_bias_and_says_so() -> None:
    module = networks.Mlp().eval()
    found = profile(module, feature_batches(2, 8, 6))
    before = module.first.bias.detach().clone()
    chosen = plan(found, "70%", PlanOptions(metric="plain"))
    report = compress_(module, chosen, found, options=NO_REFIT)
    assert not any(row.bias_moved for row in report.layers)
    torch.testing.assert_close(module.first.bias, before, rtol=0, atol=0)


def test_without_data_the_weights_are_fitted_and_nothing_is_measured() -> None:
    _, _, report = compressed(networks.Mlp().eval(), None, "70%")
    assert report.metric == "plain"
    assert report.calibration is None
    assert report.layers


def test_mode_and_gradients_are_left_as_they_were() -> None:
    module, data = networks.Mlp().train(), feature_batches(2, 8, 6)
    module.second.requires_grad_(requires_grad=False)
    found = profile(module, data)
    compress_(module, plan(found, "70%"), found, batches=data, options=NO_REFIT)
    assert all(m.training for m in module.modules())
    for name, parameter in module.named_parameters():
        assert parameter.requires_grad == name.startswith("first")
        assert parameter.grad is None
    assert not any(m._forward_hooks for m in module.modules())


def test_torchs_own_encoder_computes_the_same_on_its_fast_path() -> None:
    torch.manual_seed(0)
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    network = Function(encoder, lambda f, x: f(x))
    data = feature_batches(2, 4, 5, 8)
    module, _, report = compressed(network, data, "90%")
    assert report.layers
    x = data[0]["x"]
    with torch.no_grad():
        fast = module(x)  # reads the weights of its layers
    slow = module(x.clone().requires_grad_())
    torch.testing.assert_close(fast, slow, rtol=0, atol=FP32)


# --- stopping and going on -----------------------------------------------------------------------


class Counted:
    """Counts the fits, and stops the run before the one numbered `until`."""

    def __init__(self, until: int | None = None) -> None:
        self.fitted: list[str] = []
        self.until = until
        self._fit_layer = fit.fit_layer

    def __call__(self, layer: object, *args: object) -> fit.FittedLayer:
        if self.until is not None and len(self.fitted) == self.until:
            raise KeyboardInterrupt
        self.fitted.append(layer.name)  # type: ignore[attr-defined]
        return self._fit_layer(layer, *args)  # type: ignore[arg-type]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Counted]:
    def count(until: int | None = None) -> Counted:
        counter = Counted(until)
        counter._fit_layer = fit.fit_layer
        monkeypatch.setattr("lrcompress.compression.compress.fit_layer", counter)
        return counter

    return count


def run(folder: Path, data: list[Batch]) -> dict[str, Tensor]:
    """Compress the same network into the folder; the state of what came out."""
    module = attention()
    found = profile(module, data)
    store = CheckpointFolder(folder)
    compress_(module, plan(found, "70%"), found, batches=data, options=NO_REFIT, store=store)
    return module.state_dict()


def assert_bit_identical(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_stopped_run_goes_on_where_it_was_and_ends_with_the_same_bits(
    tmp_path: Path, counted: Callable[..., Counted]
) -> None:
    data = tokens()
    whole = counted()
    expected = run(tmp_path / "unbroken", data)
    for stop in range(len(whole.fitted)):
        folder = tmp_path / f"stopped {stop}"
        counted(until=stop)
        with pytest.raises(KeyboardInterrupt):
            run(folder, data)
        rest = counted()
        assert_bit_identical(run(folder, data), expected)
        assert rest.fitted == whole.fitted[stop:]
        assert not list(folder.glob("*.part"))


def test_a_finished_run_fits_nothing_again(tmp_path: Path, counted: Callable[..., Counted]) -> None:
    data = tokens()
    expected = run(tmp_path, data)
    again = counted()
    assert_bit_identical(run(tmp_path, data), expected)
    assert again.fitted == []


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(b"\xff" * 64),
        lambda path: path.unlink(),
    ],
    ids=["truncated", "empty", "garbage", "removed"],
)
def test_a_damaged_checkpoint_is_fitted_again(
    tmp_path: Path, counted: Callable[..., Counted], damage: Callable[[Path], object]
) -> None:
    data = tokens()
    expected = run(tmp_path, data)
    victim = sorted(tmp_path.iterdir())[0]
    damage(victim)
    again = counted()
    assert_bit_identical(run(tmp_path, data), expected)
    assert len(again.fitted) == 1


def test_names_that_no_file_may_have_are_kept_apart(tmp_path: Path) -> None:
    store = CheckpointFolder(tmp_path)
    names = ["a/b", "a.b", "../a", "a" * 400, "ä\x00"]
    for value, name in enumerate(names):
        store.put("factors", name, Entry(tensors={"left": torch.full((2,), float(value))}))
    for value, name in enumerate(names):
        held = store.get("factors", name)
        assert held is not None
        assert torch.equal(held.tensors["left"], torch.full((2,), float(value)))
    assert store.get("factors", "b") is None
    assert {path.parent for path in tmp_path.rglob("*.safetensors")} == {tmp_path}


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    entry = Entry(tensors={"left": torch.zeros(2)})
    with pytest.raises(LrcompressError, match="a file is where a folder should be") as refusal:
        CheckpointFolder(blocked / "work").put("factors", "layer", entry)
    assert "\n" not in str(refusal.value)


# --- what is refused -----------------------------------------------------------------------------


def test_a_plan_for_another_model_is_refused() -> None:
    data = feature_batches(2, 8, 6)
    torch.manual_seed(0)
    one, other = networks.Mlp(), networks.Mlp()
    found = profile(one, data)
    with pytest.raises(PlanError, match="another model"):
        compress_(one, plan(profile(other, data), "70%"), found)
    with pytest.raises(PlanError, match="another model"):
        compress_(other, plan(found, "70%"), found)
    assert type(one.first) is nn.Linear
    assert type(other.first) is nn.Linear


def test_a_model_that_was_compressed_already_is_refused() -> None:
    module, data = networks.Mlp(), feature_batches(2, 8, 6)
    found = profile(module, data)
    chosen = plan(found, "70%")
    compress_(module, chosen, found, options=NO_REFIT)
    assert type(module.first).__name__ == "FactorizedLinear"
    with pytest.raises(PlanError, match="another model"):
        compress_(module, chosen, found, options=NO_REFIT)


def test_a_model_that_is_a_single_layer_is_refused() -> None:
    module = nn.Linear(6, 5)
    with pytest.raises(ModelError, match=r"nn\.Sequential"):
        profile(module, [{"input": torch.randn(8, 6)}])


def test_factors_that_their_type_cannot_hold_are_refused_by_the_layers_name() -> None:
    class Enormous(LowRank):
        def fit(self, *arguments: Any, **named: Any) -> Factors:
            factors = super().fit(*arguments, **named)
            return {**factors, "left": factors["left"] * 1e6}

    module = networks.Mlp().half()
    found = profile(module, None)
    with pytest.raises(FitError, match=r"first: its factors overflow torch\.float16"):
        fit.fit_layer(found["first"], module.first, Enormous(2), "plain", None)


def test_moments_that_are_missing_are_said_with_the_layers_name() -> None:
    module = networks.Mlp()
    found = profile(module, None)
    with pytest.raises(FitError, match="first: the profile holds no moments"):
        fit.fit_layer(found["first"], module.first, LowRank(2), "two-sided", None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_models_are_compressed_in_their_type(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module = networks.Mlp().to(dtype).eval()
    data = [{"x": batch["x"].to(dtype)} for batch in feature_batches(2, 8, 6)]
    small, _, report = compressed(module, data, "80%")
    assert all(p.dtype is dtype for p in small.parameters())
    assert report.calibration is not None
    assert report.calibration.mean < 1


@pytest.mark.parametrize(
    "damage",
    [
        lambda module: module.first.weight.data.zero_(),
        lambda module: module.first.weight.data.fill_(0.3),
        lambda module: module.second.weight.data[:, 1:].zero_(),
    ],
    ids=["zero", "constant", "dead channels"],
)
@pytest.mark.parametrize("examples", [1, 8])
def test_degenerate_layers_are_compressed_to_finite_factors(
    damage: Callable[[networks.Mlp], object], examples: int
) -> None:
    torch.manual_seed(0)
    module = networks.Mlp().eval()
    damage(module)
    small, _, report = compressed(module, feature_batches(1, examples, 6), "70%")
    assert all(bool(torch.isfinite(p).all()) for p in small.parameters())
    assert report.calibration is not None


def refitted(module: nn.Module, batches: list[Batch]) -> tuple[nn.Module, CompressReport]:
    found = profile(module, batches)
    options = CompressOptions(refit=True)
    report = compress_(module, plan(found, "60%"), found, batches=batches, options=options)
    return module, report


@every_model
def test_a_sweep_measures_what_compressing_would_and_changes_nothing(
    make: Callable[[], nn.Module], batches: Callable[[], list[Batch]]
) -> None:
    torch.manual_seed(0)
    module, data = make().eval(), batches()
    found = profile(module, data)
    parts = dict(module.named_modules())
    plans = [plan(found, budget) for budget in ("90%", "70%")]
    points = sweep(module, plans, found, data)
    assert dict(module.named_modules()) == parts
    for chosen, point in zip(plans, points, strict=True):
        other = copy.deepcopy(module)
        report = compress_(other, chosen, found, batches=data, options=NO_REFIT)
        assert report.calibration is not None
        assert (point.budget, point.params) == (str(chosen.budget), chosen.params)
        assert point.predicted == chosen.predicted_loss
        # fewer than five batches: all of them judge, as all of them calibrate
        assert point.measured == pytest.approx(report.calibration.mean, rel=1e-5, abs=1e-9)


class BatchSecond(nn.Module):
    """Works on (positions, examples, features), as recurrent networks do."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.shared = nn.Linear(width, width)

    def forward(self, x: Tensor, attention_mask: Tensor) -> Tensor:
        out: Tensor = self.shared(x.transpose(0, 1)).transpose(0, 1)
        return out * attention_mask.unsqueeze(-1)


@torch.no_grad()
def seen_by(module: nn.Module, batch: Batch) -> tuple[Inputs, nn.Linear, nn.Linear]:
    """What the refit learns of the layer `shared`, and its dense and its compressed form."""
    torch.manual_seed(1)
    dense, other = module.get_submodule("shared"), nn.Linear(5, 5)
    assert isinstance(dense, nn.Linear)
    replace_(module, "shared", other)
    once = layer_calls(module, ["shared"], batch) == {"shared": 1}
    pairs = PairedInputs(
        module, {"shared": dense}, [batch], [Replacement("shared", dense, other)], once
    )
    return pairs.of("shared"), dense, other


@torch.no_grad()
def test_a_refit_learns_from_every_call_of_a_layer() -> None:
    torch.manual_seed(0)
    (batch,) = feature_batches(1, 40, 5)
    seen, dense, other = seen_by(networks.Twice().eval(), batch)
    x = batch["x"]
    rows = torch.cat([x, torch.tanh(dense(x))]).double()
    shifted = torch.cat([x, torch.tanh(other(x))]).double()
    torch.testing.assert_close(seen.dense_mean[0], rows.mean(0), rtol=0, atol=FP32)
    expected = torch.cov(torch.cat([rows, shifted], 1).T, correction=0)[:5, 5:]
    torch.testing.assert_close(seen.cross[0], expected, rtol=0, atol=FP32)


@torch.no_grad()
def test_a_refit_leaves_padding_out_wherever_the_batch_axis_is() -> None:
    torch.manual_seed(0)
    mask = (torch.arange(6) < torch.tensor([[2], [6], [3], [5]])).long()
    batch = {"x": torch.randn(4, 6, 5), "attention_mask": mask}
    seen, *_ = seen_by(BatchSecond().eval(), batch)
    kept = batch["x"][mask.bool()].double()
    torch.testing.assert_close(seen.dense_mean[0], kept.mean(0), rtol=0, atol=FP32)
    expected = torch.cov(kept.T, correction=0)
    torch.testing.assert_close(seen.cross[0], expected, rtol=0, atol=FP32)


class Routed(nn.Module):
    """Calls its layers by keyword; sends each row to one of two, one of which may see none."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(6, 6)
        self.left, self.right = nn.Linear(6, 6), nn.Linear(6, 6)
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        hidden = torch.tanh(self.first(input=x))
        chosen = hidden[:, 0] > 0.5
        mixed = torch.zeros_like(hidden)
        for rows, layer in ((chosen, self.left), (~chosen, self.right)):
            if bool(rows.any()):
                mixed[rows] = layer(input=hidden[rows])
        out: Tensor = self.head(input=torch.tanh(mixed))
        return out


def test_a_refit_passes_over_rows_that_the_networks_route_differently() -> None:
    torch.manual_seed(0)
    _, report = refitted(Routed().eval(), feature_batches(10, 3, 6))
    assert report.refit is not None
    assert report.refit.after <= report.refit.before


def test_a_refit_leaves_layers_whose_input_is_always_zero() -> None:
    torch.manual_seed(0)
    dead = nn.Linear(6, 8)
    nn.init.constant_(dead.bias, -1e3)
    module = nn.Sequential(dead, nn.ReLU(), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 5)).eval()
    batches = [{"input": batch["x"]} for batch in feature_batches(10, 3, 6)]
    small, report = refitted(module, batches)
    assert report.refit is not None
    assert all(bool(torch.isfinite(p).all()) for p in small.parameters())
