"""Which batches judge when not all outputs may be kept."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import nn

from lrcompress.network import held_out_divergence as judge
from lrcompress.network.held_out_divergence import held_out_divergence
from lrcompress.network.readout import choose_readout


@pytest.mark.parametrize(("kept", "expected"), [(10_000, range(9)), (30, [1, 4, 7]), (1, [4])])
def test_those_that_judge_are_spread_over_all_lengths(
    kept: int, expected: Sequence[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = nn.Linear(4, 5).eval()
    batches = [{"input": torch.full((2, 4), float(place))} for place in range(9)]  # 10 values each
    readout, _ = choose_readout(network(batches[0]["input"]))
    monkeypatch.setattr(judge, "LARGEST_KEPT", kept)
    made = held_out_divergence(network, batches, readout)
    assert [int(batch["input"][0, 0]) for batch in made.batches] == list(expected)
