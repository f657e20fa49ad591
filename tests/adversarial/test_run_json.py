"""Each field of each JSON file of a run folder, changed into what it should not be: read as a sound
value, or refused in one line that names the file."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle
from math import isfinite
from pathlib import Path
from typing import Any

import pytest

import lrcompress
from lrcompress.errors import DataError, LrcompressError
from lrcompress.formats.plan_json import plan_to_json
from lrcompress.formats.profile_json import load_profile
from lrcompress.json_dataclasses import parse_object
from lrcompress.pipeline import (
    FolderOptions,
    RunOptions,
    SourceOptions,
    TuneRequest,
    record_latency,
    run,
)
from lrcompress.pipeline.run_folder import RunFolder, read_ledger
from lrcompress.pipeline.stages.compress import CompressFacts
from lrcompress.pipeline.stages.export import ExportFacts, VerifyFacts
from lrcompress.pipeline.stages.plan import PlanFacts, read_plan
from lrcompress.pipeline.stages.sweep import SweepFacts
from lrcompress.pipeline.stages.tune import TuneFacts
from lrcompress.planning.budget import Budget
from lrcompress.planning.planner import plan
from lrcompress.tuning.options import TuneOptions

TESTS = Path(__file__).parents[1]
SOURCE = SourceOptions("small_network:build", data="small_network:batches")
TUNING = TuneRequest(TuneOptions(steps=2, evaluate_every=1, learning_rate=1e-3))
NAMES = ("profile/profile.json", "plan.json", "lrcompress.json", "report.json", "stages.json")
VALUES: dict[str, Any] = {
    "large": 1e308, "negative": -1, "text": "x", "null": None, "list": [], "whole": 2**62,
}  # fmt: skip
MORE: dict[str, Any] = {
    "zero": 0, "small": 1e-320, "object": {}, "true": True, "half": 0.5, "nested": [[[[]]]],
    "long": "y" * 300, "huge": 10**30, "other": -1e308,
}  # fmt: skip
FACTS = {
    "plan": PlanFacts, "sweep": SweepFacts, "compress": CompressFacts, "tune": TuneFacts,
    "export": ExportFacts, "verify": VerifyFacts,
}  # fmt: skip


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    before = Path.cwd()
    os.chdir(TESTS)
    output = tmp_path_factory.mktemp("runs") / "out"
    where = FolderOptions(output, report=False)
    run(RunOptions(SOURCE, where, Budget.parse("60%"), sweep=(80,), tune=TUNING))
    yield output
    os.chdir(before)


def read_all(root: Path, name: str, original: Path) -> None:
    """Read the file `name` of a run as the program does."""
    if name == "profile/profile.json":
        decided = plan(load_profile(root / "profile"), "60%")
        assert isfinite(decided.predicted_loss)
        json.loads(plan_to_json(decided))
    elif name == "plan.json":
        plan_to_json(read_plan(root / "plan.json", load_profile(original / "profile")))
    elif name == "lrcompress.json":
        lrcompress.load(root)
    elif name == "report.json":
        record_latency(root, 2.0, 1.0, made_from_it=True)
    else:
        ledger = read_ledger(root)
        assert ledger is not None
        for stage in FACTS.keys() & ledger.stages.keys():
            RunFolder(root, ledger).facts(stage, FACTS[stage])


def places(value: Any, path: tuple[Any, ...] = (), *, all_items: bool) -> Iterator[tuple[Any, ...]]:
    """Where the values lie: of lists the first items, which stand for all, and the last."""
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in value.items():
            yield from places(item, (*path, key), all_items=all_items)
    elif isinstance(value, list) and value:
        for index in sorted({0, len(value) - 1} if all_items else {0}):
            yield from places(value[index], (*path, index), all_items=all_items)


def changed(value: Any, path: tuple[Any, ...], new: Any) -> Any:
    whole = copy.deepcopy(value)
    inner = whole
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = new
    return whole


def assert_read_or_refused(
    finished: Path, name: str, kinds: Sequence[Sequence[str]], root: Path, *, all_items: bool
) -> None:
    """kinds: of the new values of a field; the fields take turns."""
    shutil.copytree(finished, root)
    original = json.loads((finished / name).read_text())
    found = list(places(original, all_items=all_items))
    assert len(found) >= len(kinds)
    for path, turn in zip(found, cycle(kinds), strict=False):
        for kind in turn:
            new = {**VALUES, **MORE}[kind]
            (root / name).write_text(json.dumps(changed(original, path, new)))
            told = ""
            try:
                read_all(root, name, finished)
            except LrcompressError as error:
                told = str(error)
            except Exception as error:
                where = ".".join(map(str, path))
                raise AssertionError(f"{where} {kind}: {type(error).__name__}: {error}") from error
            assert not told or told.isprintable(), (path, kind)


@pytest.mark.parametrize("name", NAMES)
def test_a_field_of_another_kind_is_read_or_refused(
    name: str, finished: Path, tmp_path: Path
) -> None:
    """Each kind at every third field."""
    kinds = [("large", "text"), ("negative", "null"), ("list", "whole")]
    assert sorted(kind for turn in kinds for kind in turn) == sorted(VALUES)
    assert_read_or_refused(finished, name, kinds, tmp_path / "out", all_items=False)


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", NAMES)
def test_a_field_of_any_other_kind_is_read_or_refused(
    name: str, finished: Path, tmp_path: Path
) -> None:
    kinds = [(*VALUES, *MORE)]
    assert_read_or_refused(finished, name, kinds, tmp_path / "out", all_items=True)


DAMAGED: dict[str, Callable[[str], str]] = {
    "infinity": lambda text: text.replace("{", '{"extra": Infinity,', 1),
    "minus infinity": lambda text: text.replace("{", '{"extra": [-Infinity],', 1),
    "not a number": lambda text: text.replace("{", '{"extra": NaN,', 1),
    "beyond": lambda text: text.replace("{", '{"extra": 1e999,', 1),
    "twice": lambda text: text.replace("{", '{"schema_version": 1,', 1),
    "deep": lambda text: text.replace("{", '{"extra": ' + "[" * 500 + "]" * 500 + ",", 1),
    "deeper": lambda text: text.replace("{", '{"extra": ' + "[" * 10**5 + "]" * 10**5 + ",", 1),
    "digits": lambda text: text.replace("{", '{"extra": ' + "9" * 10**4 + ",", 1),
    "half": lambda text: text[: len(text) // 2],
    "empty": lambda _: "",
    "list": lambda _: "[]",
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("damage", DAMAGED)
def test_what_is_no_json_is_refused_by_its_file_s_name(
    damage: str, name: str, finished: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished, tmp_path / "out")
    path = tmp_path / "out" / name
    path.write_text(DAMAGED[damage](path.read_text()))
    with pytest.raises(LrcompressError, match=Path(name).name) as told:
        read_all(tmp_path / "out", name, finished)
    assert str(told.value).isprintable()


def test_facts_out_of_place_name_the_file_and_the_field(finished: Path, tmp_path: Path) -> None:
    shutil.copytree(finished, tmp_path / "out")
    path = tmp_path / "out" / "stages.json"
    ledger = json.loads(path.read_text())
    ledger["stages"]["compress"]["facts"]["divergences"][0]["measured"] = "much"
    path.write_text(json.dumps(ledger))
    where = FolderOptions(tmp_path / "out", report=False)
    asked = RunOptions(SOURCE, where, Budget.parse("60%"), sweep=(80,), tune=TUNING)
    said = r"stages\.json: stages\.compress\.facts\.divergences\[0\]\.measured: must be a finite"
    with pytest.raises(DataError, match=said):
        run(asked)


def test_others_json_may_hold_what_python_writes() -> None:
    text = '{"time_step_limit": [0.0, Infinity], "a": 1, "a": 2}'
    assert parse_object(text, "config.json", DataError, foreign=True)["a"] == 2
    with pytest.raises(DataError, match=r"config\.json: not readable as JSON"):
        parse_object(text, "config.json", DataError)
