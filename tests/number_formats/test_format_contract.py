"""What every number format promises: a new format is a row of FORMATS, and needs no test file."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from math import ceil

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lrcompress.errors import PlanError
from lrcompress.number_formats import (
    BLOCKS,
    FORMATS,
    CastFormat,
    Codes,
    Format,
    Grid,
    GridFormat,
    Int2,
    Int4,
    Int8,
    Int8Dynamic,
    UInt4,
    dequantised,
    packed,
    parse_format,
    unpacked,
)
from lrcompress.planning.default_formats import FOR_BYTES, FOR_LATENCY, FOR_LATENCY_ON_GPU

BITS = (2, 4, 8)
EPS16, EPS32 = 2.0**-11, 2.0**-24  # largest relative errors of a rounding
LEAST16 = 2.0**-25  # largest error of a rounding to a subnormal float16


def formats() -> Iterator[Format]:
    """Every format, with every block size that it takes."""
    for kind in FORMATS.values():
        yield kind()
        if issubclass(kind, GridFormat) and kind is not Int8Dynamic:
            yield from (kind(block=block) for block in BLOCKS)


EVERY = tuple(dict.fromkeys(formats()))
GRIDS = tuple(format for format in EVERY if isinstance(format, GridFormat))
every_format = pytest.mark.parametrize("format", EVERY, ids=str)
every_grid = pytest.mark.parametrize("format", GRIDS, ids=str)
# Rows shorter than every block, of whole blocks, and with a shorter last block
SHAPES = ((1, 1), (3, 5), (2, 16), (4, 37), (3, 128), (2, 300))


def drawn(rows: int, columns: int, seed: int = 0) -> Tensor:
    """Weights with outliers, and with a row on each side of zero."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=generator).pow(3)
    weight[0] = weight[0].abs()
    weight[-1] = -weight[-1].abs()
    return weight


def nearest(format: GridFormat, weight: Tensor, grid: Grid) -> Codes:
    codes = grid.nearest(weight)
    return Codes(grid, codes.clamp_min(1) if format.narrow else codes)


def squared(values: Tensor) -> float:
    return float(values.double().square().sum())


# ---- texts ----------------------------------------------------------------------------------


def test_every_format_is_in_the_table_under_its_name() -> None:
    assert {kind.type_name: kind for kind in FORMATS.values()} == FORMATS


@every_format
def test_a_format_is_a_value_that_its_text_gives_back(format: Format) -> None:
    assert parse_format(str(format)) == format
    assert parse_format(f" {format} ") == format
    assert {format: "found"}[parse_format(str(format))] == "found"


def test_a_name_without_a_block_size_is_the_default_one() -> None:
    for name, kind in FORMATS.items():
        assert parse_format(name) == kind()


def test_the_formats_of_auto_are_written_as_they_print() -> None:
    for text in (*FOR_BYTES, *FOR_LATENCY, *FOR_LATENCY_ON_GPU):
        assert str(parse_format(text)) == text


@pytest.mark.parametrize(
    ("text", "next_step"),
    [
        ("", "fp32, fp16"),
        ("int5", "fp32, fp16"),
        ("INT4", "fp32, fp16"),
        ("int4 /32", "fp32, fp16"),
        ("fp16/32", "write fp16"),
        ("int8-dynamic/32", "write int8-dynamic"),
        ("int4/", "write int4/32"),
        ("int4/0", "write int4/32"),
        ("int4/33", "write int4/32"),
        ("int4/-32", "write int4/32"),
        ("int4/32.0", "write int4/32"),
        ("int4/32/32", "write int4/32"),
        ("int4/032", "write int4/32"),
        ("int4/\u0663\u0662", "write int4/32"),
        ("int4/" + 5000 * "9", "write int4/32"),
    ],
)
def test_what_is_no_format_is_refused_with_the_next_step(text: str, next_step: str) -> None:
    with pytest.raises(PlanError, match=r"^format ") as caught:
        parse_format(text)
    assert next_step in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


@settings(max_examples=50)
@given(st.text(max_size=12) | st.sampled_from(sorted(FORMATS)).flatmap(
    lambda name: st.text("/0123456789", max_size=4).map(lambda rest: name + rest)
))  # fmt: skip
def test_any_text_is_a_format_or_a_plain_refusal(text: str) -> None:
    with suppress(PlanError):
        assert parse_format(text) in EVERY


# ---- bytes ----------------------------------------------------------------------------------


@every_format
@pytest.mark.parametrize("padded", [False, True])
def test_bytes_are_those_of_what_is_stored(format: Format, *, padded: bool) -> None:
    for rows, columns in SHAPES:
        weight = drawn(rows, columns)
        if isinstance(format, CastFormat):
            stored = [weight.to(format.dtype)]
        else:
            assert isinstance(format, GridFormat)
            grid = format.grid(weight)
            codes = grid.nearest(weight)
            if padded:
                whole = grid.scales.shape[1] * grid.block
                codes = torch.nn.functional.pad(codes, (0, whole - columns))
            stored = [packed(codes, format.bits), grid.scales.half()]
            if grid.zeros is not None:
                stored.append(packed(grid.zeros, format.bits))
        held = sum(tensor.numel() * tensor.element_size() for tensor in stored)
        assert format.nbytes(rows, columns, padded=padded) == held


@every_format
def test_bits_of_a_weight_are_those_of_a_large_matrix(format: Format) -> None:
    """Rows of 2^14: the one scale of a row of int8-dynamic is .1 % of a bit."""
    bits = 8 * format.nbytes(2, 2**14) / 2**15
    assert bits == pytest.approx(format.bits_per_weight, abs=0.001)


@every_grid
def test_a_short_row_has_the_smallest_block_that_a_kernel_takes(format: GridFormat) -> None:
    for columns in (1, 5, 16, 17, 100, 256, 300):
        block = format.block_of(columns)
        if not format.block:
            assert block == columns
            continue
        holding = [size for size in BLOCKS if size >= columns]
        assert block == min([format.block, *holding])
        assert format.blocks(columns) == ceil(columns / block)


# ---- packing --------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", BITS)
@given(rows=st.integers(1, 4), columns=st.integers(1, 19), seed=st.integers(0, 99))
@settings(max_examples=25)
def test_packed_codes_come_back(bits: int, rows: int, columns: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(1 << bits, (rows, columns), generator=generator, dtype=torch.uint8)
    stored = packed(codes, bits)
    assert stored.dtype is torch.uint8
    assert stored.shape == (rows, ceil(columns * bits / 8))
    assert torch.equal(unpacked(stored, bits, columns), codes)


def test_the_first_code_has_the_lowest_bits() -> None:
    assert packed(torch.tensor([[1, 2, 3]], dtype=torch.uint8), 4).tolist() == [[0x21, 0x03]]
    assert packed(torch.tensor([[1, 2, 3, 0, 2]], dtype=torch.uint8), 2).tolist() == [[0x39, 2]]
    assert packed(torch.tensor([[200, 7]], dtype=torch.uint8), 8).tolist() == [[200, 7]]


# ---- values ---------------------------------------------------------------------------------


@every_grid
def test_values_are_scale_times_code_minus_zero(format: GridFormat) -> None:
    for rows, columns in SHAPES[:-1]:
        grid = format.grid(drawn(rows, columns))
        generator = torch.Generator().manual_seed(1)
        codes = torch.randint(
            1 << format.bits, (rows, columns), generator=generator, dtype=torch.uint8
        )
        expected = torch.empty(rows, columns)
        for i in range(rows):
            for j in range(columns):
                block = j // grid.block
                zero = grid.middle if grid.zeros is None else int(grid.zeros[i, block])
                expected[i, j] = float(grid.scales[i, block]) * (int(codes[i, j]) - zero)
        # A float16 times 8 bits is exact in float32
        assert torch.equal(Codes(grid, codes).dequantised(), expected)


@every_grid
def test_the_nearest_code_is_the_nearest_value(format: GridFormat) -> None:
    rows, columns = 5, 37
    weight = drawn(rows, columns)
    for grid in (format.grid(weight), format.full_range_grid(weight)):
        found = (Codes(grid, grid.nearest(weight)).dequantised() - weight).abs()
        every = torch.stack(
            [
                Codes(grid, torch.full((rows, columns), code, dtype=torch.uint8)).dequantised()
                for code in range(1 << format.bits)
            ]
        )
        least = (every - weight).abs().amin(0)
        # w / scale, and the sum with the zero point, are rounded in float32
        scales, _ = grid.per_column(columns)
        slack = 4 * EPS32 * (weight.abs() + scales.abs() * (1 << format.bits))
        assert bool((found <= least + slack).all())


@every_grid
@pytest.mark.parametrize("weighted", [False, True])
def test_the_searched_grid_is_never_worse_than_the_full_range(
    format: GridFormat, *, weighted: bool
) -> None:
    for seed, (rows, columns) in enumerate(SHAPES):
        weight = drawn(rows, columns, seed)
        importance = torch.rand(columns, generator=torch.Generator().manual_seed(seed)) ** 4
        by = importance if weighted else None
        root = importance.sqrt() if weighted else 1.0
        losses = [
            squared((nearest(format, weight, grid).dequantised() - weight) * root)
            for grid in (format.grid(weight, by), format.full_range_grid(weight))
        ]
        # Both losses are compared as sums in float32
        assert losses[0] <= losses[1] * (1 + columns * EPS32)


@every_grid
def test_no_error_exceeds_a_step_over_the_full_range(format: GridFormat) -> None:
    """Half a step from rounding; where the sides are equal, one end lacks a level; and the largest
    of the levels is off by the rounding of the scale to float16."""
    weight = drawn(6, 100)
    grid = format.full_range_grid(weight)
    scales, _ = grid.per_column(100)
    error = (nearest(format, weight, grid).dequantised() - weight).abs()
    levels = 1 << format.bits
    assert bool((error <= scales.abs() * (1 + levels * (EPS16 + EPS32))).all())


@every_grid
def test_zero_is_a_value_of_every_grid(format: GridFormat) -> None:
    weight = drawn(5, 40)
    weight[:, ::3] = 0
    codes = nearest(format, weight, format.grid(weight))
    assert bool((codes.dequantised()[:, ::3] == 0).all())


@every_grid
def test_rows_of_zeros_stay_zeros(format: GridFormat) -> None:
    weight = drawn(3, 40)
    weight[1] = 0
    grid = format.grid(weight)
    assert bool((grid.scales != 0).all())
    assert bool((nearest(format, weight, grid).dequantised()[1] == 0).all())
    nothing = torch.zeros(2, 40)
    assert torch.equal(nearest(format, nothing, format.grid(nothing)).dequantised(), nothing)


@every_grid
@pytest.mark.parametrize("exponent", [-44, -30, -12, -6, -3, 3, 6, 12, 30, 37])
def test_scales_are_finite_float16_for_weights_of_any_size(
    format: GridFormat, exponent: int
) -> None:
    """What no float16 scale reaches is the largest value that one does, or zero."""
    weight = (drawn(4, 40).double() * 10.0**exponent).float()
    for grid in (format.grid(weight), format.full_range_grid(weight)):
        assert torch.equal(grid.scales.half().float(), grid.scales)
        assert bool(grid.scales.isfinite().all())
        assert bool((grid.scales != 0).all())
        values = nearest(format, weight, grid).dequantised()
        assert bool(values.isfinite().all())
        most = torch.finfo(torch.float16).max * (1 << format.bits)
        assert bool((values.abs() <= most).all())
        assert bool((values * weight >= 0).all())  # no sign is lost
    # Not worse than without the layer, up to the rounding of the largest value
    assert squared(values - weight) <= squared(weight) * (1 + 8 * EPS16)


def test_the_larger_side_gets_the_extra_level() -> None:
    """A grid without zero points has one more level below zero: its scale may be negative."""
    weight = torch.tensor([[8.0, -7.0, 1.0, 3.0], [-8.0, 7.0, -1.0, -3.0]])
    grid = Int4().full_range_grid(weight)
    assert grid.scales.flatten().tolist() == [-1.0, 1.0]
    assert torch.equal(nearest(Int4(), weight, grid).dequantised(), weight)
    weight = torch.tensor([[2.0, -1.0, 0.0, 1.0]])
    grid = Int2().full_range_grid(weight)
    assert float(grid.scales) == -1.0
    assert torch.equal(nearest(Int2(), weight, grid).dequantised(), weight)


def test_a_zero_point_fits_one_sided_weights() -> None:
    weight = torch.arange(16.0).reshape(1, 16)
    for sign, zero in ((1.0, 0), (-1.0, 15)):
        grid = UInt4().full_range_grid(sign * weight)
        assert grid.zeros is not None
        assert grid.zeros.tolist() == [[zero]]
        assert torch.equal(nearest(UInt4(), sign * weight, grid).dequantised(), sign * weight)


def test_codes_of_int8_dynamic_are_symmetric() -> None:
    weight = torch.tensor([[-127.0, 127.0, 5.0, 0.0]])
    grid = Int8Dynamic().grid(weight)
    assert (grid.nearest(weight).int() - 128).tolist() == [[-127, 127, 5, 0]]


def test_scales_have_gradients_through_the_values() -> None:
    """dw / dscale = code - zero, summed over the block."""
    grid = Int8(block=16).grid(drawn(2, 20))
    codes = grid.nearest(drawn(2, 20))
    scales = grid.scales.clone().requires_grad_()
    dequantised(codes, scales, None, bits=8, block=16).sum().backward()
    centred = codes.float() - 128
    expected = torch.stack([centred[:, :16].sum(1), centred[:, 16:].sum(1)], 1)
    assert torch.equal(torch.as_tensor(scales.grad), expected)
