"""Loss curves of number formats: rounding's own losses, and what has none."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
import torch
from random_moments import random_moments
from structure_cases import KINDS
from synthetic import spec

from lrcompress.errors import PlanError
from lrcompress.formats.profile_json import load_profile, save_profile
from lrcompress.layers import LayerSpec, describe, weight_matrix
from lrcompress.metrics import METRICS, Whitening
from lrcompress.network.batches import Batch
from lrcompress.number_formats import FORMATS, Format, parse_format
from lrcompress.profiling.curves_json import curves_from_json, curves_to_json
from lrcompress.profiling.format_curves import REFERENCE_BITS, format_curves
from lrcompress.profiling.options import ProfileOptions
from lrcompress.profiling.profile import CurvePoint
from lrcompress.profiling.profiler import profile
from lrcompress.profiling.truncation import Truncation
from lrcompress.structures import Dense, LowRank, Quantised, in_format
from lrcompress.structures.structure import FitTask

ROWS, COLUMNS = 24, 40
SPEC = spec("layer", ROWS, COLUMNS)
SEVERAL = ("fp16", "int8/128", "int8-dynamic", "int4/32", "int2/16")


def weight_of(layer: LayerSpec) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    shape = (layer.groups, layer.out_features, layer.in_features)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def whitening_of(layer: LayerSpec) -> Whitening:
    return METRICS["two-sided"].whitening(random_moments(layer), shrinkage=0.1)


def options(*formats: str, structures: tuple[str, ...] = ("low_rank",)) -> ProfileOptions:
    return ProfileOptions(formats=formats, structures=structures)


def curves(*formats: str, structures: tuple[str, ...] = ("low_rank",)) -> list[list[CurvePoint]]:
    asked = options(*formats, structures=structures)
    found = format_curves(weight_of(SPEC), whitening_of(SPEC), SPEC, asked)
    return [list(curve) for curve in found]


def test_without_formats_there_are_no_curves() -> None:
    assert curves() == []


def test_a_curve_has_one_structure_in_one_format() -> None:
    found = curves(*SEVERAL)
    kinds = [{in_format(point.structure)[1] for point in curve} for curve in found]
    expected = [{(parse_format(text),)} for text in SEVERAL]
    assert kinds == [*expected, *expected]
    for curve in found[: len(SEVERAL)]:
        assert [in_format(point.structure)[0] for point in curve] == [Dense()]
    for curve in found[len(SEVERAL) :]:
        ranks = [in_format(point.structure)[0] for point in curve]
        assert all(isinstance(rank, LowRank) for rank in ranks)
        assert len(set(ranks)) > 1
        assert all(rank.rank <= SPEC.break_even_rank for rank in ranks if isinstance(rank, LowRank))


def test_losses_of_the_dense_weight_are_those_of_its_rounding() -> None:
    weight, whitening = weight_of(SPEC), whitening_of(SPEC)
    for (point,) in curves(*SEVERAL, structures=()):
        factors = point.structure.fit(weight, whitening, SPEC)
        exact = float(whitening.loss(weight - point.structure.dense(factors, SPEC)))
        assert point.loss == pytest.approx(exact, rel=1e-9)
        assert point.loss > 0


def test_losses_of_low_rank_in_the_measured_format_are_those_of_its_rounding() -> None:
    """int4/32 has the bits of the reference. In other formats, what rounding adds is scaled as for
    the dense weight."""
    weight, whitening = weight_of(SPEC), whitening_of(SPEC)
    assert parse_format("int4/32").bits_per_weight == REFERENCE_BITS
    found = {in_format(c[0].structure)[1][0]: c for c in curves(*SEVERAL)[len(SEVERAL) :]}
    dense = {in_format(c[0].structure)[1][0]: c[0].loss for c in curves(*SEVERAL, structures=())}
    reference = parse_format("int4/32")
    truncation = Truncation.of(whitening.whiten(weight), whitening)
    lowest = dict.fromkeys(found, float("inf"))
    for index, point in enumerate(found[reference]):
        inner, _ = in_format(point.structure)
        assert isinstance(point.structure, Quantised)
        assert isinstance(inner, LowRank)
        factors = truncation.factors(inner.rank)
        unrounded = float(whitening.loss(weight - inner.dense(factors, SPEC)))
        rounded = point.structure.round_factors(factors, FitTask(weight, whitening, SPEC))
        added = max(point.structure.loss(rounded, weight, whitening, SPEC) - unrounded, 0.0)
        for format, curve in found.items():
            expected = unrounded + added * dense[format] / dense[reference]
            lowest[format] = min(lowest[format], expected)
            assert curve[index].loss == pytest.approx(lowest[format], rel=1e-9)


def test_losses_never_grow_with_rank_nor_with_bits() -> None:
    found = curves("int8/128", "int4/32", "int2/32")
    for curve in found:
        assert all(after.loss <= before.loss for before, after in pairwise(curve))
    for one, other in ((0, 1), (1, 2), (3, 4), (4, 5)):
        for point, coarser in zip(found[one], found[other], strict=True):
            assert point.loss < coarser.loss


@pytest.mark.parametrize("case", KINDS.values(), ids=KINDS.keys())
def test_a_format_that_a_layer_does_not_take_has_no_curve(case: object) -> None:
    host = case.host()  # type: ignore[attr-defined]
    (layer,) = describe(host).layers
    weight = weight_matrix(host.layer)
    formats: list[Format] = [kind() for kind in FORMATS.values()]
    found = format_curves(weight, whitening_of(layer), layer, options(*map(str, formats)))
    taken = {in_format(curve[0].structure)[1][0] for curve in found}
    linear = layer.kind in ("linear", "transposed_linear")
    expected = {f for f in formats if linear or str(f) != "int8-dynamic"}
    assert taken == expected


def test_a_weight_beyond_float16_has_no_curve_in_it() -> None:
    weight = weight_of(SPEC)
    weight[0, 0, 0] = 1e6
    found = format_curves(weight, Whitening(), SPEC, options("fp16", "bf16", "int8/128"))
    assert {str(in_format(curve[0].structure)[1][0]) for curve in found} == {"bf16", "int8/128"}
    assert all(torch.isfinite(torch.tensor([p.loss for p in curve])).all() for curve in found)
    assert format_curves(weight, Whitening(), SPEC, options("fp16")) == ()


def test_a_weight_that_is_not_finite_or_zero_ends_without_an_error() -> None:
    weight = weight_of(SPEC)
    weight[0, 0, 0] = torch.nan
    assert format_curves(weight, Whitening(), SPEC, options("int4/32")) == ()
    nothing = torch.zeros_like(weight)
    for curve in format_curves(nothing, Whitening(), SPEC, options("fp16", "int4/32")):
        assert [point.loss for point in curve] == [0.0] * len(curve)


def test_curves_come_back_from_json() -> None:
    layer = KINDS["linear"].host()
    (own,) = describe(layer).layers
    weight, whitening = weight_matrix(layer.layer), whitening_of(own)
    found = format_curves(weight, whitening, own, options(*SEVERAL))
    spectra = {"two-sided": torch.linalg.svdvals(whitening.whiten(weight))[0]}
    value = json.loads(json.dumps(curves_to_json(found), allow_nan=False))
    assert curves_from_json(value, "two-sided", spectra, own, "curves") == found


class Small(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = torch.nn.Embedding(30, 12)
        self.mix = torch.nn.Conv1d(12, 12, 3, padding=1)
        self.head = torch.nn.Linear(12, 5)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.mix(self.tokens(ids).mT).mT
        return torch.as_tensor(self.head(torch.relu(x).mean(1)))


def data() -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    return [{"ids": torch.randint(30, (16, 7), generator=generator)} for _ in range(2)]


def test_a_profile_with_formats_is_written_and_read(tmp_path: object) -> None:
    folder = tmp_path / "profile"  # type: ignore[operator]
    asked = options("int8-dynamic", "int4/32")
    made = profile(Small().eval(), data(), asked)
    assert made.formats == asked.formats
    for layer in made.layers:
        formats = {str(in_format(c[0].structure)[1][0]) for c in layer.curves}
        linear = layer.spec.kind == "linear"
        assert formats == ({"int8-dynamic", "int4/32"} if linear else {"int4/32"})
    save_profile(made, folder)
    read = load_profile(folder)
    assert read.formats == made.formats
    assert [layer.curves for layer in read.layers] == [layer.curves for layer in made.layers]


def test_a_profile_without_data_measures_formats_in_the_plain_metric() -> None:
    made = profile(Small().eval(), None, options("int4/32"))
    assert all(layer.curves_metric == "plain" and layer.curves for layer in made.layers)


def test_an_unknown_format_is_refused_before_any_work() -> None:
    with pytest.raises(PlanError, match='format "int5" is not one of'):
        profile(Small(), data(), options("int5"))
