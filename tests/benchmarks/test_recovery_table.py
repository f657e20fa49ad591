"""docs/tuning.md has a row for every optimiser, adapter and regulariser, with measured figures."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks.recovery import RECIPES
from lrcompress.tuning.adapters import ADAPTERS
from lrcompress.tuning.optimisers import OPTIMISERS
from lrcompress.tuning.options import TuneOptions
from lrcompress.tuning.regularisers import REGULARISERS

ROOT = Path(__file__).parents[2]
# subject, limit of equal steps, data, limit of equal seconds
COLUMNS = (
    ("gpt", "50 steps", "all", "20 s"),
    ("gpt", "50 steps", "8 KB", None),
    ("minilm", "40 steps", "all", "30 s"),
    ("vit", "100 steps", "all", "6 s"),
)


def options_of(text: str) -> TuneOptions:
    """The options in the first column: `--adapter lora --skip-first 1`, or "default"."""
    named = dict(re.findall(r"--([a-z-]+) ([\w-]+)", text))
    return TuneOptions(
        scope=named.get("scope", "vectors"),  # type: ignore[arg-type]
        hidden=float(named.get("hidden", 1)),
        optimiser=named.get("optimiser", "adamw"),
        adapter=named.get("adapter"),
        adapter_place=named.get("adapter-place", "factors"),  # type: ignore[arg-type]
        skip_first=int(named.get("skip-first", 0)),
        regularisers=(named["regulariser"],) if "regulariser" in named else (),
    )


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    """The figures of each row of the table, by its option."""
    page = (ROOT / "docs" / "tuning.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| ")]
    return {cells[0]: cells[3:] for cells in rows if len(cells) == 7 and cells[0] != "option"}


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, ...], dict[str, Any]]:
    rows = json.loads((ROOT / "benchmarks" / "results" / "recovery.json").read_text())["rows"]
    return {(r["subject"], r["recipe"], r["limit"], r["data"]): r for r in rows}


def test_every_method_has_its_row(table: dict[str, list[str]]) -> None:
    offered = [options_of(option) for option in table]
    assert {o.optimiser for o in offered} == set(OPTIMISERS)
    assert {o.adapter for o in offered} == {None, *ADAPTERS}
    assert {name for o in offered for name in o.regularisers} == set(REGULARISERS)


def test_every_figure_was_measured(
    table: dict[str, list[str]], measured: dict[tuple[str, ...], dict[str, Any]]
) -> None:
    recipes = {recipe.options: recipe.name for recipe in RECIPES}
    for option, cells in table.items():
        name = recipes[options_of(option)]
        for cell, (subject, steps, data, seconds) in zip(cells, COLUMNS, strict=True):
            limits = [steps] if seconds is None else [steps, seconds]
            found = [measured[subject, name, limit, data]["recovered"] for limit in limits]
            assert cell == " / ".join(str(round(100 * share)) for share in found), (option, subject)
