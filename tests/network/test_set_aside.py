"""Which examples calibrate, which judge and which confirm."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from lrcompress.network.batches import Batch, batch_size, spread_examples
from lrcompress.network.held_out_examples import FEWEST_EXAMPLES, set_aside


def numbered(sizes: list[int]) -> list[Batch]:
    """Batches whose examples are numbered through."""
    ends = torch.tensor(sizes).cumsum(0).tolist()
    return [{"x": torch.arange(end - n, end)} for n, end in zip(sizes, ends, strict=True)]


def examples(batches: tuple[Batch, ...]) -> list[int]:
    return [int(i) for batch in batches for i in batch["x"]]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=60))
def test_every_example_is_in_exactly_one_part(sizes: list[int]) -> None:
    batches = numbered(sizes)
    parts = set_aside(batches)
    all_parts = [examples(p) for p in (parts.calibration, parts.judging, parts.confirming)]
    total = sum(sizes)
    if total < FEWEST_EXAMPLES:
        assert all(part == list(range(total)) for part in all_parts)
        return
    assert sorted(i for part in all_parts for i in part) == list(range(total))
    assert all(all_parts)
    assert len(all_parts[0]) >= total / 3
    assert all(batch_size(b) for p in (parts.calibration, parts.judging) for b in p)


def test_of_many_examples_a_small_share_is_set_aside_over_all_lengths() -> None:
    parts = set_aside(numbered([16] * 32))
    judging = examples(parts.judging)
    assert len(examples(parts.calibration)) >= 0.85 * 512
    assert max(judging) - min(judging) > 256


def test_batches_that_cannot_be_cut_stay_whole() -> None:
    batches: list[Batch] = [
        {"x": torch.full((16, 2), float(i)), "table": torch.zeros(3)} for i in range(6)
    ]
    parts = set_aside(batches)
    for part in (parts.calibration, parts.judging, parts.confirming):
        assert part
        assert all(batch_size(batch) == 16 for batch in part)
    assert sum(map(len, (parts.calibration, parts.judging, parts.confirming))) == 6


@given(st.lists(st.integers(1, 32), min_size=1, max_size=40), st.integers(1, 100))
def test_a_sample_has_about_as_many_examples_as_asked(sizes: list[int], wanted: int) -> None:
    chosen = spread_examples(numbered(sizes), wanted)
    found = sum(map(batch_size, chosen))
    assert found >= 1
    assert found <= wanted + max(sizes)
