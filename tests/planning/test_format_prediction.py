"""The predicted loss of formats that were not measured, against the loss of rounding in them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from random_moments import random_moments
from synthetic import spec
from torch import nn

from lrcompress.checkpoint import NoCheckpoints
from lrcompress.number_formats import Bf16, Fp16, Int2, Int4, Int8, Int8Dynamic, parse_format
from lrcompress.planning.choices import choice_of, is_measured
from lrcompress.planning.format_prediction import relative_error
from lrcompress.profiling.layer_profile import profile_layer
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import LayerProfile
from lrcompress.structures import Blast, Dense, LowRank, Quantised

METRIC = "two-sided"
EVERY = ("fp16", "bf16", "int8/128", "int4/32", "int4/128", "uint4/32", "int2/32", "uint2/16")
SHAPES = [(24, 40), (64, 64), (48, 160), (160, 48)]


def measured(shape: tuple[int, int], seed: int) -> LayerProfile:
    torch.manual_seed(seed)
    module = nn.ModuleDict({"layer": nn.Linear(shape[1], shape[0])})
    of = spec("layer", *shape)
    moments = random_moments(of, seed, examples=40 if seed else 400)
    asked = ProfileOptions(formats=EVERY, structures=())
    return profile_layer(module, of, moments, "layer", 1.0, asked, NoCheckpoints())[0]


def knowing(of: LayerProfile, *texts: str) -> LayerProfile:
    kept = (c for c in of.curves if str(c[0].structure.formats[0]) in texts)  # type: ignore[attr-defined]
    return replace(of, curves=tuple(kept))


def loss(of: LayerProfile, text: str) -> float:
    return choice_of(of, METRIC, Quantised(Dense(), (parse_format(text),))).loss


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize(
    ("known", "text"),
    [
        ("int4/32", "int2/32"),
        ("int4/128", "uint2/16"),
        ("int8/128", "int2/32"),
        ("int8/128", "int4/32"),
        ("int4/32", "int8/128"),
        ("int4/128", "uint4/32"),
        ("bf16", "fp16"),
    ],
)
def test_the_loss_is_predicted_within_a_factor_of_two(
    shape: tuple[int, int], seed: int, known: str, text: str
) -> None:
    of = measured(shape, seed)
    part = knowing(of, known)
    assert not is_measured(part, METRIC, Quantised(Dense(), (parse_format(text),)))
    assert loss(of, text) / 2 <= loss(part, text) <= 2 * loss(of, text)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("text", ["int2/32", "int4/32", "int8/128"])
def test_without_any_measured_format_it_is_within_a_factor_of_five(
    shape: tuple[int, int], text: str
) -> None:
    of = measured(shape, 1)
    assert loss(of, text) / 5 <= loss(knowing(of), text) <= 5 * loss(of, text)


def test_it_is_never_above_the_loss_of_a_zero_weight_and_never_zero() -> None:
    of = measured((64, 64), 0)
    whole = of.loss_of_removal(METRIC)
    for known in ((), ("int8/128",), ("fp16",)):
        for text in ("int2", "int2/16", "uint2/32", "int4/256", "int8", "int8-dynamic", "bf16"):
            assert 0 < loss(knowing(of, *known), text) <= whole
    # Far worse measured: its ratio to two bits would be above a zero weight
    bad = replace(
        of, curves=tuple((replace(c[0], loss=0.5 * whole),) for c in knowing(of, "int4/32").curves)
    )
    assert loss(bad, "int2/32") == whole


def test_it_is_corrected_as_measured_losses_are() -> None:
    of = knowing(measured((64, 64), 0), "int4/32")
    corrected = replace(of, factor=3.0)
    assert loss(corrected, "int2/32") == pytest.approx(3 * loss(of, "int2/32"))


def test_rounded_inputs_cost_more_than_rounded_weights() -> None:
    of = knowing(measured((64, 64), 0), "int8/128")
    assert loss(of, "int8-dynamic") > loss(of, "int8/256")


def test_a_structure_adds_its_own_loss() -> None:
    of = knowing(measured((64, 64), 0), "int4/32")
    for inner in (LowRank(8), Blast(8, blocks=2)):
        alone = choice_of(of, METRIC, inner).loss
        both = choice_of(of, METRIC, Quantised(inner, (Int2(32),))).loss
        assert both == pytest.approx(alone + loss(of, "int2/32"))


def test_errors_of_normal_values_are_those_of_their_formats() -> None:
    """A cast rounds to 2^-11 or 2^-8 of a value, at most: a third of its square or less."""
    for cast, bits in ((Fp16(), 11), (Bf16(), 8)):
        assert 2.0 ** (-2 * bits) / 12 < relative_error(cast, 64) < 2.0 ** (-2 * bits) / 3
    # The least error of 2, 4 and 8 uniform bits on normal values is .1188, .01154 and 1.2e-4
    # (Max 1960) with one scale for all; a scale per block is better for many bits
    errors = [relative_error(one, 64) for one in (Int2(32), Int4(32), Int8(128))]
    assert 0.06 < errors[0] < 0.16
    assert 0.004 < errors[1] < 0.0116
    assert 1e-5 < errors[2] < 1.2e-4
    assert relative_error(Int4(16), 256) < relative_error(Int4(128), 256)
    assert relative_error(Int8Dynamic(), 64) < relative_error(Int8Dynamic(), 1024)
