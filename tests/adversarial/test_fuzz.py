"""Inputs damaged at random end every command as documented; `fuzz.py` runs as many as asked.

The slow test runs LRCOMPRESS_FUZZ of them (800), all formats taking turns.
"""

from __future__ import annotations

import os
from collections import Counter
from contextlib import chdir
from pathlib import Path

import pytest

from adversarial.commands import TESTS
from adversarial.fuzzing.formats import FORMATS, SLOW
from adversarial.fuzzing.materials import make
from adversarial.fuzzing.runner import inputs, run_all, warm_up
from lrcompress.sources import factory

MANY = int(os.environ.get("LRCOMPRESS_FUZZ", "800"))


@pytest.fixture(scope="module")
def materials(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("materials")
    make(folder)
    return folder


def check(materials: Path, first: int, count: int) -> Counter[int]:
    """Exit codes of the inputs; fails with each that ended otherwise than documented."""
    with chdir(TESTS), pytest.MonkeyPatch.context() as patch:
        patch.setattr(factory, "_named", set(factory._named))  # consent for these runs alone
        warm_up(materials)
        results = list(run_all(list(inputs(first, count)), materials))
    assert len(results) == count
    faults = [f"{r.format} {r.seed}: {r.fault}: {r.error}" for r in results if r.fault]
    assert not faults, "\n".join(faults)
    return Counter(result.code for result in results)


def test_damaged_inputs(materials: Path) -> None:
    """Each format once but for whole runs, which are left to the slow test."""
    codes = check(materials, len(FORMATS), len(FORMATS) - len(SLOW))
    assert codes[0] > 10, "nothing was read"
    assert codes[7] > 20, "nothing was damaged"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("shard", range(2))
def test_many_damaged_inputs(shard: int, materials: Path) -> None:
    check(materials, MANY // 2 * shard, MANY // 2)


def test_an_input_can_be_made_again(materials: Path) -> None:
    with chdir(TESTS):
        chosen = list(inputs(0, len(FORMATS) - len(SLOW)))[::7]
        one, other = (list(run_all(chosen, materials)) for _ in range(2))
    assert [(r.format, r.code, r.fault) for r in one] == [
        (r.format, r.code, r.fault) for r in other
    ]
