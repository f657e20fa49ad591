"""Claims of tuning weights in number formats: what is measured is what is stored, in the same
formats; gradients are those of the values that were computed with."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
import small_network
import torch
from networks import feature_batches
from torch import Tensor, nn

from lrcompress.checkpoint import CheckpointFolder, Entry
from lrcompress.compression.replace import install_
from lrcompress.errors import TuneError
from lrcompress.layers import describe, weight_matrix
from lrcompress.metrics import Whitening
from lrcompress.metrics.root import root_of
from lrcompress.network.batches import Batch
from lrcompress.network.held_out_divergence import held_out_divergence
from lrcompress.network.readout_search import find_readout
from lrcompress.number_formats import parse_format
from lrcompress.structures import Blast, Dense, LowRank, Structure
from lrcompress.structures.dynamic_input import DynamicLinear
from lrcompress.structures.quantised import Quantised
from lrcompress.structures.stored_codes import stored_weights
from lrcompress.tuning.adapters import ADAPTERS
from lrcompress.tuning.latent_weights import Latent, LatentWeights
from lrcompress.tuning.merged_rounding import round_merged_
from lrcompress.tuning.optimisers import OPTIMISERS
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.regularisers import REGULARISERS
from lrcompress.tuning.split import split
from lrcompress.tuning.tune import tune_

SHORT = TuneOptions(steps=20, learning_rate=3e-3)
LAYERS: Mapping[str, tuple[Structure, str]] = {
    "blocks.0.up": (Dense(), "int4/16"),
    "blocks.0.down": (LowRank(8), "uint4/16"),
    "blocks.1.up": (Dense(), "uint2/16"),
    "blocks.1.down": (LowRank(10), "int8-dynamic"),
    "blocks.2.up": (Blast(6, 2), "int8/32"),
    "blocks.2.down": (LowRank(9), "fp16"),
    "head": (Dense(), "int2/16"),
}


def batches() -> list[Batch]:
    return [{"x": 2 * b["x"]} for b in feature_batches(10, 64, small_network.WIDTH)]


def pair(dtype: torch.dtype = torch.float32) -> tuple[nn.Module, nn.Module]:
    """A network with weights in formats, and its dense one."""
    return copy.deepcopy(_pair(dtype))


@functools.cache
def _pair(dtype: torch.dtype) -> tuple[nn.Module, nn.Module]:
    torch.manual_seed(0)
    dense = small_network.build().eval().to(dtype)
    with torch.no_grad():
        dense.head.weight *= 5
    module = copy.deepcopy(dense)
    for spec in describe(dense).layers:
        structure, text = LAYERS[spec.name]
        chosen = Quantised(structure, (parse_format(text),))
        layer = module.get_submodule(spec.name)
        factors = chosen.fit(weight_matrix(layer).double(), Whitening(), spec)
        bias = layer.bias
        assert isinstance(bias, Tensor)
        install_(module, spec, chosen, chosen.stored(factors, dtype), bias.detach())
    return module, dense


def bits(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return list(one) == list(other) and all(
        one[name].dtype == other[name].dtype and torch.equal(one[name], other[name]) for name in one
    )


def held_out(module: nn.Module, dense: nn.Module) -> float:
    """The divergence on the examples that a tuning holds out."""
    parts = split(batches())
    readout, _ = find_readout(dense, parts.held_out, objective="auto", pooling=None)
    return held_out_divergence(dense, parts.held_out, readout).divergence(module)


def assert_same_form(module: nn.Module, before: Mapping[str, Tensor]) -> None:
    """The same tensors of the same sizes and types, in the same order."""
    after = module.state_dict()
    assert list(after) == list(before)
    assert all(after[n].shape == before[n].shape for n in before)
    assert all(after[n].dtype == before[n].dtype for n in before)


# ---- latent weights -------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_what_did_not_train_is_stored_with_the_same_bits(dtype: torch.dtype) -> None:
    module, _ = pair(dtype)
    before = bits(module)
    latents = LatentWeights(module, list(LAYERS), scales=True)
    assert not list(stored_weights(module))
    latents.store_()
    assert same(bits(module), before)


def test_a_deep_copy_and_its_source_do_not_share_what_becomes_latent() -> None:
    module, _ = pair()
    copied = copy.deepcopy(module)
    before = bits(module)
    LatentWeights(copied, list(LAYERS), scales=True)
    assert same(bits(module), before)
    assert len(list(stored_weights(module))) == 12  # 3 dense, 3 low rank, BLAST's 3 factors
    module(batches()[0]["x"])


def latent_loss(module: nn.Module, latents: LatentWeights) -> float:
    with latents.rounding():
        loss = module(batches()[0]["x"].to(next(module.parameters()).dtype)).square().mean()
        loss.backward()
    return float(loss.detach())


def test_the_gradient_of_a_latent_weight_is_that_of_the_values_computed_with() -> None:
    module, _ = pair(torch.float64)
    plain = copy.deepcopy(module)
    for latent in LatentWeights(plain, list(LAYERS), scales=False).latents:
        latent.values.requires_grad_(True)
    plain(batches()[0]["x"].double()).square().mean().backward()
    latents = LatentWeights(module, list(LAYERS), scales=True)
    generator = torch.Generator().manual_seed(0)
    for latent in latents.latents:
        latent.values.requires_grad_(True)
        if latent.first is not None:  # less than half a step away: the same codes
            noise = torch.rand(latent.values.shape, generator=generator, dtype=torch.float64)
            spacing = latent.first.grid.per_column(latent.first.codes.shape[1])[0]
            shift = 0.9 * (noise - 0.5) * spacing.abs().reshape(latent.values.shape)
            latent.values.data += shift
    latent_loss(module, latents)
    expected = dict(plain.named_parameters())
    for name, parameter in module.named_parameters():
        if name in expected and expected[name].grad is not None and parameter.grad is not None:
            assert torch.equal(parameter.grad, expected[name].grad)


def test_the_gradient_of_a_scale_agrees_with_finite_differences() -> None:
    module, _ = pair(torch.float64)
    latents = LatentWeights(module, list(LAYERS), scales=True)
    for latent in latents.latents:
        latent.values.requires_grad_(True)
    for part in module.modules():  # rounding of inputs would make the loss jump
        if isinstance(part, DynamicLinear):
            part.__class__ = nn.Linear
    latent_loss(module, latents)
    step = 1e-4
    for latent in latents.latents:
        if latent.first is None:
            assert latent.stretch is None
            continue
        assert latent.stretch is not None
        assert latent.stretch.grad is not None
        rows, columns = latent.first.codes.shape
        block = latent.first.grid.block
        for row, place in ((0, 0), (rows - 1, latent.first.grid.scales.shape[1] - 1)):
            found = float(latent.stretch.grad.reshape(rows, -1)[row, place])
            inside = slice(place * block, (place + 1) * block)
            values = latent.values.data.clone()
            losses = []
            for change in (step, -step):  # exp(t), without its rounding to float16
                moved = values.clone().reshape(rows, columns)
                moved[row, inside] *= torch.tensor(change, dtype=torch.float64).exp()
                latent.values.data = moved.reshape(values.shape)
                with torch.no_grad():
                    losses.append(float(module(batches()[0]["x"].double()).square().mean()))
            latent.values.data = values
            # central differences err by step^2; the loss by 2^-53 of about 1e2, over the step;
            # the gradient is kept in float32
            expected = (losses[0] - losses[1]) / (2 * step)
            assert found == pytest.approx(expected, rel=1e-5, abs=1e-6)


def test_a_value_beyond_the_grid_takes_its_last_code_and_code_0_stays_unused_if_narrow() -> None:
    module, _ = pair()
    latents = LatentWeights(module, list(LAYERS), scales=True)
    for latent in latents.latents:
        if latent.first is None:
            continue
        scales = latent.first.grid.scales[:, :1]
        format = latent.place.format
        for sign, expected in ((1e3, 2**latent.first.grid.bits - 1), (-1e3, int(format.narrow))):
            latent.values.data = (sign * scales.sign()).expand(latent.first.codes.shape).clone()
            codes = latent.codes()
            assert codes is not None
            assert bool((codes.codes[:, 0] == expected).all())
            latent.values.data = latent.values.data.reshape(latent.values.shape)


def test_scales_are_float16_in_every_pass() -> None:
    module, _ = pair()
    latents = LatentWeights(module, list(LAYERS), scales=True)
    moved = next(latent for latent in latents.latents if latent.stretch is not None)
    assert moved.stretch is not None
    assert moved.first is not None
    moved.stretch.data.fill_(0.1)
    expected = (moved.first.grid.scales * torch.tensor(0.1).exp()).half().float()
    values = with_scales(moved, expected)
    with latents.rounding():
        assert torch.equal(moved.values.detach(), values)
    latents.store_()
    stored = next(iter(stored_weights(module)))
    assert stored.codes is not None
    assert torch.equal(stored.codes.grid.scales, expected)
    assert torch.equal(stored.values, values)


def with_scales(latent: Latent, scales: Tensor) -> Tensor:
    assert latent.first is not None
    columns = latent.first.codes.shape[1]
    index = torch.arange(columns) // latent.first.grid.block
    _, zeros = latent.first.grid.per_column(columns)
    values = (latent.first.codes.float() - zeros) * scales[:, index]
    return values.reshape(latent.values.shape)


# ---- tuning ---------------------------------------------------------------------------------


def test_tuning_improves_and_measures_what_it_stores() -> None:
    module, dense = pair()
    before, start = bits(module), held_out(module, dense)
    report = tune_(module, dense, batches(), SHORT)
    assert report.start == start
    assert report.end < 0.8 * start
    assert held_out(module, dense) == report.end
    assert_same_form(module, before)
    after = bits(module)
    integers = [n for n in before if before[n].dtype == torch.uint8 and n.endswith("original0")]
    scales = [n for n in before if before[n].dtype == torch.float16 and n.endswith("original1")]
    assert any(not torch.equal(before[n], after[n]) for n in integers)
    assert any(not torch.equal(before[n], after[n]) for n in scales)
    again, _ = pair()
    again.load_state_dict(after)
    assert held_out(again, dense) == report.end


def test_a_rate_that_breaks_the_network_changes_no_bit() -> None:
    module, dense = pair()
    before = bits(module)
    report = tune_(module, dense, batches(), TuneOptions(steps=20, learning_rate=1e4))
    assert report.end == report.start
    assert same(bits(module), before)


def test_weights_are_stored_again_when_a_training_fails() -> None:
    module, dense = pair()
    before = bits(module)

    def broken(network: nn.Module, batch: Batch) -> Tensor:
        if torch.is_grad_enabled():
            raise RuntimeError("broken")
        loss: Tensor = network(batch["x"]).square().mean()
        return loss

    with pytest.raises(TuneError, match="broken"):
        tune_(module, dense, batches(), TuneOptions(objective="task", steps=4), task=broken)
    assert same(bits(module), before)


class Stopped(Exception):
    pass


class Stopping(CheckpointFolder):
    """Stops right after the checkpoint of step 10, as a kill would."""

    def put(self, kind: str, name: str, entry: Entry) -> None:
        super().put(kind, name, entry)
        if entry.values["state"]["step"] == 10:
            raise Stopped


def test_a_stopped_training_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    module, dense = pair()
    expected = tune_(module, dense, batches(), SHORT)
    again, _ = pair()
    with pytest.raises(Stopped):
        tune_(again, dense, batches(), SHORT, store=Stopping(tmp_path))
    resumed, _ = pair()
    report = tune_(resumed, dense, batches(), SHORT, store=CheckpointFolder(tmp_path))
    assert report.end == expected.end
    assert same(bits(resumed), bits(module))


def unchanged_or_better(module: nn.Module, dense: nn.Module, options: TuneOptions) -> None:
    before, start = bits(module), held_out(module, dense)
    report = tune_(module, dense, batches(), options)
    assert report.start == start
    assert report.end <= start
    assert held_out(module, dense) == report.end
    assert_same_form(module, before)
    if not report.best_step:
        assert same(bits(module), before)


@pytest.mark.parametrize("optimiser", OPTIMISERS)
def test_every_optimiser_trains_stored_weights(optimiser: str) -> None:
    options = TuneOptions(steps=10, learning_rate=1e-3, optimiser=optimiser)
    unchanged_or_better(*pair(), options)


@pytest.mark.parametrize("regulariser", REGULARISERS)
def test_every_regulariser_finds_factors_that_are_stored(regulariser: str) -> None:
    options = TuneOptions(steps=10, learning_rate=1e-3, regularisers=(regulariser,))
    unchanged_or_better(*pair(), options)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_adapters_are_merged_and_rounded_to_the_same_formats(adapter: str) -> None:
    options = TuneOptions(steps=10, learning_rate=3e-3, adapter=adapter, adapter_rank=2)
    unchanged_or_better(*pair(), options)


def test_blocks_can_be_left_alone_or_skipped_at_random() -> None:
    module, dense = pair()
    before = bits(module)
    unchanged_or_better(module, dense, TuneOptions(steps=10, learning_rate=1e-3, skip_first=1))
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]) or not name.startswith("blocks.0.")
    skipping = TuneOptions(steps=10, learning_rate=1e-3, skip_first=1, random_skip=True)
    unchanged_or_better(*pair(), skipping)


def test_an_adapter_beside_a_layer_on_a_grid_is_refused_before_any_work() -> None:
    module, dense = pair()
    before = bits(module)
    options = TuneOptions(adapter="lora", adapter_place="layer")
    with pytest.raises(TuneError, match=r"blocks\.0\.up.*int4/16.*factors"):
        tune_(module, dense, batches(), options)
    assert same(bits(module), before)


# ---- rounding after a merge -----------------------------------------------------------------


def moment(size: int, generator: torch.Generator) -> Tensor:
    drawn = torch.randn(size, 3 * size, generator=generator, dtype=torch.float64)
    return (drawn * torch.linspace(2, 0.2, size).double().unsqueeze(1)) @ drawn.mT / size


@pytest.mark.parametrize("name", ["blocks.0.up", "blocks.0.down", "head"])
def test_a_merged_update_keeps_more_of_its_effect_than_by_rounding_to_nearest(name: str) -> None:
    module, _ = pair()
    generator = torch.Generator().manual_seed(0)
    latents = LatentWeights(module, [name], scales=False)
    for latent in latents.latents:
        assert latent.first is not None
        noise = torch.randn(latent.values.shape, generator=generator)
        latent.values.data += 0.3 * latent.first.grid.scales.abs().mean() * noise
    layer = module.get_submodule(name)
    weight = layer.weight
    assert isinstance(weight, Tensor)
    target = weight.detach().double()
    whitening = Whitening(
        root_of(moment(target.shape[0], generator)[None]),
        root_of(moment(target.shape[1], generator)[None]),
    )
    losses = []
    rounding: Callable[[], None]
    for rounding in (
        lambda: None,
        lambda: round_merged_(latents, module, {name: whitening}),
    ):
        rounding()
        with latents.rounding():
            found = layer.weight.detach().double()
        losses.append(float(whitening.loss((target - found)[None])))
    assert losses[1] < losses[0]
    latents.store_()
    assert torch.equal(layer.weight.detach().double(), found)


def test_without_an_update_rounding_changes_nothing() -> None:
    module, _ = pair()
    before = bits(module)
    latents = LatentWeights(module, list(LAYERS), scales=False)
    round_merged_(latents, module, {})
    latents.store_()
    assert same(bits(module), before)
