"""Rows of codes whose scales follow from the values."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lrcompress.number_formats.exact_rows import MOST, exact_rows, nbytes, rounded_rows

SHAPES = ((64, 128), (5, 17), (3, 40, 16), (48, 8, 3, 3), (1, 1, 200), (7, 1))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1e-25, 1e-8, 1.0, 1e7, 1e30])
def test_rounding_is_found_again_and_near(shape, scale):
    torch.manual_seed(0)
    values = torch.randn(shape) * scale
    rounded = rounded_rows(values)
    found = exact_rows(rounded)
    assert found is not None
    assert torch.equal(found.codes * found.scales, rounded)
    assert torch.equal(rounded_rows(rounded), rounded)
    step = values.abs().amax() / MOST
    assert float((rounded - values).abs().amax()) <= float(step) * 0.51


def test_found_in_any_place_of_a_graph():
    """Transposed, joined with other rows, or with more axes."""
    torch.manual_seed(1)
    first, second = rounded_rows(torch.randn(32, 64)), rounded_rows(torch.randn(32, 64))
    for moved in (first.mT, torch.cat([first, second]), torch.stack([first, second]), first[None]):
        found = exact_rows(moved.contiguous())
        assert found is not None
        assert torch.equal(found.codes * found.scales, moved)


def test_other_values_have_no_such_grid():
    torch.manual_seed(2)
    values = rounded_rows(torch.randn(16, 64))
    values[3, 5] *= 1 + 2**-20
    assert exact_rows(values) is None
    assert exact_rows(torch.randn(16, 64)) is None


@given(st.lists(st.floats(-(2.0**66), 2.0**66, width=32), min_size=1, max_size=40))
def test_a_row_of_any_values(row):
    values = torch.tensor(row, dtype=torch.float32).unsqueeze(0)
    rounded = rounded_rows(values)
    assert exact_rows(rounded) is not None
    step = float(values.abs().amax()) / MOST
    assert float((rounded - values).abs().amax()) <= 0.51 * step + 2.0**-100


def test_bytes_are_those_of_codes_and_scales():
    for shape in SHAPES:
        found = exact_rows(rounded_rows(torch.randn(shape)))
        assert found is not None
        assert nbytes(shape) == found.codes.nbytes + found.scales.nbytes
