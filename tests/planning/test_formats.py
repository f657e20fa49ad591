"""Plans with number formats: what is offered, what it costs and loses, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from math import log

import numpy as np
import pytest
from latency_tables import measurement, table
from synthetic import layer, profile, spec

from lrcompress.errors import PlanError
from lrcompress.formats.plan_json import check_plan, plan_from_json, plan_to_json
from lrcompress.layers import LayerSpec
from lrcompress.number_formats import Fp16, Fp32, Int4, Int8, Int8Dynamic, parse_format
from lrcompress.planning.budget import Budget
from lrcompress.planning.choices import (
    Choice,
    choice_of,
    is_measured,
    layer_choices,
)
from lrcompress.planning.default_formats import (
    FOR_BYTES,
    FOR_LATENCY,
    FOR_LATENCY_ON_GPU,
    default_formats,
)
from lrcompress.planning.format_losses import SMALLEST_ADDED
from lrcompress.planning.latency import table_to_json
from lrcompress.planning.options import PlanOptions
from lrcompress.planning.planner import plan
from lrcompress.profiling.profile import CurvePoint, LayerProfile, Profile
from lrcompress.profiling.spectrum import loss_curve
from lrcompress.structures import Dense, LowRank, Quantised, Structure, in_format

METRIC = "two-sided"
RANKS = (3, 8, 15)  # measured, below break-even
SHARE = {"fp16": 1e-7, "int8/128": 1e-5, "int8-dynamic": 2e-5, "int4/32": 3e-3, "int2/32": 0.1}


def curves(of: LayerProfile, formats: tuple[str, ...]) -> tuple[tuple[CurvePoint, ...], ...]:
    """Rounding adds a share of what the layer is worth, and more to a product of factors."""
    whole, losses = of.loss_of_removal(METRIC), loss_curve(of.spectra[METRIC]).tolist()
    made = []
    for text in formats:
        format = (parse_format(text),)
        made.append((CurvePoint(Quantised(Dense(), format), SHARE[text] * whole),))
        points = [
            CurvePoint(
                Quantised(LowRank(rank), format),
                losses[rank] + (1 + rank / 10) * SHARE[text] * whole,
            )
            for rank in RANKS
        ]
        lowest = np.minimum.accumulate([point.loss for point in points])
        made.append(tuple(replace(p, loss=float(x)) for p, x in zip(points, lowest, strict=True)))
    return tuple(made)


def measured(of: LayerSpec, formats: tuple[str, ...], seed: int = 0) -> LayerProfile:
    made = layer(of, np.random.default_rng(seed))
    return replace(made, curves=curves(made, formats), curves_metric=METRIC)


def made_profile(*formats: str, fixed: int = 100) -> Profile:
    shapes = [(40, 40), (96, 40), (40, 96)]
    layers = [measured(spec(f"l.{i}", *s), formats, i) for i, s in enumerate(shapes)]
    return replace(profile(layers, fixed_params=fixed), formats=formats)


EVERY = tuple(SHARE)


@pytest.fixture(scope="module")
def made() -> Profile:
    return made_profile(*EVERY)


def offered(of: LayerProfile, *formats: str, bytes_per_param: int = 4) -> tuple[Choice, ...]:
    return layer_choices(of, METRIC, formats=formats, bytes_per_param=bytes_per_param)


def by_structure(choices: tuple[Choice, ...]) -> dict[Structure, Choice]:
    assert len({choice.structure for choice in choices}) == len(choices)
    return {choice.structure: choice for choice in choices}


# ---- choices --------------------------------------------------------------------------------


def test_losses_at_measured_sizes_are_those_measured(made: Profile) -> None:
    for of in made.layers:
        found = by_structure(offered(of, *EVERY))
        floor = 1.001 * SMALLEST_ADDED  # what rounding is taken to add at least
        for point in (point for curve in of.curves for point in curve):
            assert found[point.structure].loss == pytest.approx(point.loss, rel=floor)
            assert is_measured(of, METRIC, point.structure)
            chosen = choice_of(of, METRIC, point.structure)
            assert chosen.loss == found[point.structure].loss
            assert chosen.bytes == found[point.structure].bytes


def test_what_rounding_adds_is_interpolated_between_measured_ranks(made: Profile) -> None:
    of = made["l.1"]
    losses = loss_curve(of.spectra[METRIC]).tolist()
    found = by_structure(offered(of, "int4/32"))

    def added(rank: int) -> float:
        return found[Quantised(LowRank(rank), (Int4(),))].loss - losses[rank]

    for low, high in ((3, 8), (8, 15)):
        for rank in range(low + 1, high):
            part = (rank - low) / (high - low)
            expected = (1 - part) * log(added(low)) + part * log(added(high))
            assert log(added(rank)) == pytest.approx(expected, abs=1e-6)
    # constant outside of what was measured
    assert added(1) == pytest.approx(added(3), rel=1e-6)
    assert added(25) == pytest.approx(added(15), rel=1e-6)


def test_choices_cost_the_bytes_that_their_format_takes(made: Profile) -> None:
    of = made["l.1"]
    rows, columns = 96, 40
    found = by_structure(offered(of, "fp32", *EVERY))
    for text in EVERY:
        format = parse_format(text)
        dense = found[Quantised(Dense(), (format,))]
        padded = not text.startswith("int8")  # int8 needs no kernel, which would take whole blocks
        assert dense.bytes == format.nbytes(rows, columns, padded=padded)
        assert dense.params == rows * columns
        low = found[Quantised(LowRank(8), (format,))]
        both = ((rows, 8), (8, columns))
        assert low.bytes == sum(format.nbytes(*shape, padded=padded) for shape in both)
        assert low.params == 8 * (rows + columns)
        assert low.flops_per_example == found[LowRank(8)].flops_per_example
    assert found[Dense()].bytes == 4 * rows * columns


def test_only_the_allowed_formats_are_offered(made: Profile) -> None:
    for allowed in (("int4/32",), ("fp16", "int8/128"), ("fp32", "int4/32")):
        for choice in offered(made["l.0"], *allowed):
            _, formats = in_format(choice.structure)
            assert all(str(format) in allowed for format in formats)


@pytest.mark.parametrize(
    ("allowed", "bytes_per_param", "plain"),
    [
        ((), 4, True),
        (("fp32", "int4/32"), 4, True),
        (("int4/32",), 4, False),
        (("fp16", "int4/32"), 4, False),
        (("fp16", "int4/32"), 2, True),
        (("bf16", "int4/32"), 2, True),
        (("fp32", "int4/32"), 2, False),
        (("uint4/32",), 4, True),  # nothing else was measured
    ],
)
def test_the_stored_precision_is_offered_only_if_it_is_named(
    made: Profile, allowed: tuple[str, ...], bytes_per_param: int, *, plain: bool
) -> None:
    choices = offered(made["l.0"], *allowed, bytes_per_param=bytes_per_param)
    unrounded = [c.structure for c in choices if not in_format(c.structure)[1]]
    assert bool(unrounded) == plain
    assert any(isinstance(one, Dense) for one in unrounded) == plain
    assert choices  # never none


def test_formats_of_structures_that_are_not_wanted_are_left_out(made: Profile) -> None:
    choices = layer_choices(
        made["l.0"], METRIC, wanted=("dense", "low_rank"), formats=("int4/32",), min_rank=8
    )
    ranks = {s.rank for c in choices if isinstance(s := in_format(c.structure)[0], LowRank)}
    assert min(ranks) == 8
    only = layer_choices(made["l.0"], METRIC, wanted=("low_rank",), formats=("int4/32",))
    assert all(isinstance(in_format(c.structure)[0], LowRank) for c in only)


def test_curves_of_another_metric_offer_no_format(made: Profile) -> None:
    choices = layer_choices(made["l.0"], "plain", formats=EVERY)
    assert not any(in_format(choice.structure)[1] for choice in choices)


# ---- plans ----------------------------------------------------------------------------------


def test_another_metric_of_the_fits_keeps_the_measured_losses_of_formats(made: Profile) -> None:
    """Without them a budget that counts formats would be met by ranks alone, at any loss."""
    found = plan(made, "bytes=15%", PlanOptions(metric="plain"))
    wanted = plan(made, "bytes=15%", PlanOptions(metric=METRIC))
    assert found.metric == "plain"
    assert found.loss_metric == METRIC
    assert found.structures == wanted.structures
    assert found.predicted_loss == wanted.predicted_loss
    assert plan(made, "params=50%", PlanOptions(metric="plain")).loss_metric == "plain"


def test_a_plan_in_formats_keeps_its_bytes_and_loses_less_than_ranks_alone(made: Profile) -> None:
    alone = made_profile()
    for share in ("60%", "30%", "15%"):
        decided, ranks = plan(made, f"bytes={share}"), plan(alone, f"bytes={share}")
        assert decided.within_budget
        assert decided.bytes <= float(share[:-1]) / 100 * made.total_bytes
        assert decided.predicted_loss < ranks.predicted_loss
        assert decided.lower_bound is not None
        assert decided.lower_bound <= decided.predicted_loss * (1 + 1e-9)
        held = 4 * 100 + sum(x.structure.nbytes(x.spec, 4) for x in decided.layers)
        assert decided.bytes == held


def test_fewer_bytes_take_fewer_bits(made: Profile) -> None:
    """At 55 % of float32, 16 bits fit; at 30 %, 8; at 20 % nearly all must have 4 or less."""
    for share, most in ((0.55, 16), (0.3, 8.2), (0.14, 4.6)):
        decided = plan(made, Budget("bytes", share, relative=True, scope="compressible"))
        bits = [
            8 * x.structure.nbytes(x.spec, 4) / x.params
            for x in decided.layers
            if isinstance(x.structure, Quantised)
        ]
        assert bits
        assert min(bits) <= most * 1.2


def test_formats_that_are_named_are_the_only_ones(made: Profile) -> None:
    decided = plan(made, "bytes=40%", PlanOptions(formats=("int8/128",)))
    for planned in decided.layers:
        assert in_format(planned.structure)[1] == (Int8(),)


def test_what_is_said_of_speed_is_true_of_formats(
    made: Profile, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The share of the bytes, taken as one of the FLOPs, would leave nothing of the network."""
    whole = {"structure": "dense", "blocks": 0, "kept": 1.0}
    path = tmp_path_factory.mktemp("table") / "table.json"
    path.write_text(table_to_json(table(measurement("", 2.0, **whole, format="int4/32")), {}))
    options = PlanOptions(latency_table=str(path), structures=("dense",), formats=("int4/32",))
    decided = plan(replace(made, examples=4), "bytes=30%", options)
    said = [warning for warning in decided.warnings if "% of the work" in warning]
    assert len(said) == 1
    assert said[0].endswith("; for speed add a budget of latency, such as --budget latency=60%")
    (slow,) = (warning for warning in decided.warnings if "slower than dense" in warning)
    assert slow.endswith("on cpu, by the latency table; a latency budget counts their time")


def test_fp32_alone_gives_the_plan_without_formats(made: Profile) -> None:
    decided = plan(made, "bytes=50%", PlanOptions(formats=("fp32",)))
    assert decided.structures == plan(made_profile(), "bytes=50%").structures


@pytest.mark.parametrize("budget", ["50%", "flops=50%"])
def test_budgets_that_formats_do_not_change_take_none(made: Profile, budget: str) -> None:
    decided = plan(made, budget)
    assert not any(in_format(x.structure)[1] for x in decided.layers)
    assert decided.structures == plan(made_profile(), budget).structures
    assert plan(made, budget, PlanOptions(formats=("fp32",))).structures == decided.structures
    with pytest.raises(PlanError, match=r"same in every format \(int4/32\); use --budget bytes"):
        plan(made, budget, PlanOptions(formats=("fp32", "int4/32")))


def test_one_of_two_budgets_may_count_formats(made: Profile) -> None:
    decided = plan(made, ["flops=80%", "bytes=20%"], PlanOptions(formats=("int4/32", "int8/128")))
    assert decided.within_budget
    assert any(in_format(x.structure)[1] for x in decided.layers)


def test_int8_dynamic_is_for_latency_unless_it_is_named(made: Profile) -> None:
    dynamic = (Int8Dynamic(),)
    for_bytes = plan(made, "bytes=25%")
    assert all(in_format(x.structure)[1] != dynamic for x in for_bytes.layers)
    named = plan(made, "bytes=26%", PlanOptions(formats=("int8-dynamic",)))
    assert all(in_format(x.structure)[1] == dynamic for x in named.layers)


def test_a_latency_budget_takes_what_is_fast(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = made_profile("int8-dynamic", "int4/32")
    whole = {"structure": "dense", "blocks": 0, "kept": 1.0}
    rows = [
        measurement("", 0.3, **whole, format="int8-dynamic"),
        measurement("", 2.0, **whole, format="int4/32"),
    ]
    path = tmp_path_factory.mktemp("table") / "table.json"
    path.write_text(table_to_json(table(*rows), {}))
    options = PlanOptions(latency_table=str(path), structures=("dense",))
    decided = plan(made, Budget("latency", 0.5, relative=True, scope="compressible"), options)
    assert {in_format(x.structure)[1] for x in decided.layers} == {(Int8Dynamic(),)}


def test_formats_without_a_kernel_are_refused_or_left_out(made: Profile) -> None:
    options = PlanOptions(provider="cuda", formats=("int8-dynamic", "int4/32"))
    with pytest.raises(PlanError, match=r"int8-dynamic: the provider cuda has no kernel .*; use"):
        plan(made, "bytes=25%", options)
    decided = plan(made, "latency=80%", PlanOptions(provider="cuda"))
    assert all(in_format(x.structure)[1] != (Int8Dynamic(),) for x in decided.layers)


def test_a_layer_beyond_the_range_of_its_formats_keeps_the_stored_one_and_says_why(
    made: Profile,
) -> None:
    far = replace(made["l.1"], curves=())  # none of the formats could be rounded to
    layers = tuple(far if x.name == "l.1" else x for x in made.layers)
    beyond = replace(made, layers=layers)
    decided = plan(beyond, "bytes=70%", PlanOptions(formats=("int8/128",), structures=("dense",)))
    kept = decided["l.1"].structure
    assert isinstance(kept, Dense)
    assert kept.reason == (
        "its values are too large or too small for int8/128, whose scales or values are float16"
    )
    assert in_format(decided["l.0"].structure)[1] == (Int8(),)
    text = plan_to_json(decided)
    assert plan_from_json(text, beyond) == decided
    for format in ("int8", "fp16"):
        asked = edited(text, "l.1", {"type": "dense", "format": format})
        with pytest.raises(PlanError, match=r"^l\.1: its values are too large .*; use bf16"):
            plan_from_json(asked, beyond)
    # A format that was not tried may fit; compress finds out
    asked = edited(text, "l.1", {"type": "dense", "format": "int4/16"})
    assert in_format(plan_from_json(asked, beyond)["l.1"].structure)[1] == (Int4(16),)


@pytest.mark.parametrize("text", ["uint4/32", "int4/128", "bf16"])
def test_a_format_that_was_not_measured_is_refused(made: Profile, text: str) -> None:
    with pytest.raises(PlanError, match=rf"format {text}, only of .*; profile again with --form"):
        plan(made, "bytes=25%", PlanOptions(formats=(text,)))
    with pytest.raises(PlanError, match=r"only of the stored one; profile again"):
        plan(made_profile(), "bytes=25%", PlanOptions(formats=(text,)))


def test_options_refuse_a_text_that_is_no_format() -> None:
    with pytest.raises(PlanError, match='format "int5" is not one of'):
        PlanOptions(formats=("int5",))


# ---- plan.json ------------------------------------------------------------------------------


def test_a_plan_in_formats_comes_back_from_its_file(made: Profile) -> None:
    for budget in ("bytes=30%", "bytes=12%"):
        decided = plan(made, budget)
        text = plan_to_json(decided)
        assert plan_from_json(text, made) == decided
        rows = json.loads(text)["layers"]
        for row, planned in zip(rows, decided.layers, strict=True):
            formats = in_format(planned.structure)[1]
            shown = ", ".join(map(str, formats)) or None
            assert row["structure"].get("format") == shown


def edited(text: str, name: str, structure: object) -> str:
    value = json.loads(text)
    for row in value["layers"]:
        if row["name"] == name:
            row["structure"] = structure
    return json.dumps(value)


@pytest.mark.parametrize(
    ("structure", "expected"),
    [
        ({"type": "dense", "format": "int4"}, Quantised(Dense(), (Int4(),))),
        ({"type": "dense", "format": "fp16"}, Quantised(Dense(), (Fp16(),))),
        ({"type": "dense", "format": "stored"}, Dense()),
        ({"type": "dense"}, Dense()),
        ({"type": "low_rank", "rank": 8, "format": "stored, stored"}, LowRank(8)),
        (
            {"type": "low_rank", "rank": 8, "format": "fp32, int4"},
            Quantised(LowRank(8), (Fp32(), Int4())),
        ),
        (
            {"type": "low_rank", "rank": 8, "format": "int8, int4/32"},
            Quantised(LowRank(8), (Int8(), Int4())),
        ),
        (
            {"type": "low_rank", "rank": 5, "format": "int8-dynamic"},
            Quantised(LowRank(5), (Int8Dynamic(),)),
        ),
        ({"type": "dense", "format": "int4/256"}, Quantised(Dense(), (Int4(256),))),
    ],
)
@pytest.mark.parametrize("budget", ["bytes=30%", "50%"])
def test_an_edited_format_is_taken(
    made: Profile, structure: object, expected: Structure, budget: str
) -> None:
    """Also under a budget that formats do not change: whoever edits a plan decides."""
    decided = plan(made, budget)
    read = plan_from_json(edited(plan_to_json(decided), "l.1", structure), made)
    assert read["l.1"].structure == expected
    others = sum(x.structure.nbytes(x.spec, 4) for x in read.layers if x.name != "l.1")
    assert read.bytes == 400 + others + expected.nbytes(read["l.1"].spec, 4)
    assert 0 <= read["l.1"].predicted_loss < made["l.1"].loss_of_removal(METRIC)
    said = [warning for warning in read.warnings if "no loss curve" in warning]
    assert bool(said) != is_measured(made["l.1"], METRIC, expected)
    again = plan_from_json(plan_to_json(read), made)
    assert again.structures == read.structures


def test_factors_in_two_formats_lose_as_in_the_coarser_one(made: Profile) -> None:
    of = made["l.1"]
    mixed = choice_of(of, METRIC, Quantised(LowRank(8), (Int8(), Int4())))
    coarse = choice_of(of, METRIC, Quantised(LowRank(8), (Int4(),)))
    assert mixed.loss == coarse.loss
    assert mixed.bytes < choice_of(of, METRIC, Quantised(LowRank(8), (Int8(),))).bytes


@pytest.mark.parametrize(
    ("structure", "words"),
    [
        ({"type": "dense", "format": "int5"}, r"l\.1: format \"int5\" is not one of"),
        ({"type": "dense", "format": "int4/7"}, r"l\.1: format .*write int4/32"),
        ({"type": "dense", "format": 4}, r"l\.1: format must be a text"),
        (
            {"type": "low_rank", "rank": 8, "format": "stored, int4/32"},
            r'l\.1: "stored" is for all factors of a layer, .*: fp32, fp16 or bf16$',
        ),
        ({"type": "dense", "format": "int4, int8"}, r"l\.1: 2 formats for 1 factors of dense"),
        (
            {"type": "monarch", "rank": 2, "blocks": 4, "format": "int4"},
            r"l\.1: monarch takes no number format",
        ),
        ({"type": "low_rank", "rank": 60, "format": "int4"}, r"l\.1: rank 60 "),
    ],
)
def test_a_wrong_edit_is_refused_by_layer(made: Profile, structure: object, words: str) -> None:
    text = edited(plan_to_json(plan(made, "bytes=30%")), "l.1", structure)
    with pytest.raises(PlanError, match=words):
        plan_from_json(text, made)
    with pytest.raises(PlanError, match=words):
        check_plan(text, [of.spec for of in made.layers])


# ---- defaults -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kinds", "named", "provider", "expected"),
    [
        (["params"], None, "cpu", ()),
        (["flops"], None, "cpu", ()),
        ([], None, "cpu", ()),
        (["bytes"], None, "cpu", FOR_BYTES),
        (["bytes"], None, "cuda", FOR_BYTES),
        (["latency"], None, "cpu", FOR_LATENCY),
        (["latency"], None, "cuda", FOR_LATENCY_ON_GPU),
        (["bytes", "latency"], None, "cpu", (*FOR_BYTES, "int8-dynamic")),
        (["params", "bytes"], None, "cpu", FOR_BYTES),
        ([], ["auto"], "cpu", (*FOR_BYTES, "int8-dynamic")),
        (["bytes"], ["auto"], "cpu", FOR_BYTES),
        (["bytes"], ["auto", "int2/32"], "cpu", (*FOR_BYTES, "int2/32")),
        (["latency"], ["int4/32", "auto"], "cpu", ("int4/32", "fp32", "int8-dynamic")),
        (["bytes"], ["fp32"], "cpu", ()),
        (["bytes"], ["fp32", "int4/32"], "cpu", ("fp32", "int4/32")),
        (["latency"], ["uint4/32"], "cuda", ("uint4/32",)),
    ],
)  # fmt: skip
def test_the_default_formats_suit_the_budgets(
    kinds: list[str], named: list[str] | None, provider: str, expected: tuple[str, ...]
) -> None:
    assert default_formats(kinds, named, provider) == expected


@pytest.mark.parametrize("provider", ["cpu", "cuda", "tensorrt"])
def test_the_default_formats_have_kernels(provider: str) -> None:
    for kinds in ([], ["bytes"], ["latency"], ["bytes", "latency"]):
        for text in default_formats(kinds, ["auto"], provider):
            assert provider in parse_format(text).providers
