"""A run that is killed anywhere and run again ends with the bits of one that was not, and leaves
nothing else behind.

SIGKILL strikes before a file operation, in the middle of a write, between units of work, and at
times; in each stage, over a folder that held another run, and in one of two processes.

The slow tests kill about LRCOMPRESS_KILLS times, spread evenly over the scenarios and the points of
each: 50 unless that is set, and 225 or more for all of them.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
ALL = 225

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="forks, and kills what it forked")


def kills(folder: Path, *requests: dict[str, Any]) -> list[dict[str, Any]]:
    """What came of each kill."""
    path = [str(TESTS), str(ROOT), str(ROOT / "cli")]
    done = subprocess.run(
        [sys.executable, "-m", "adversarial.killed_runs", str(folder), json.dumps(requests)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"},
        cwd=TESTS,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_as_if_nothing_had_been(found: list[dict[str, Any]]) -> None:
    for kill in found:
        assert kill["wrong"] == [], kill
        assert set(kill["again"]) == {0}, kill
        assert kill["orphaned"] == 0, f"the other process did not notice: {kill}"


def test_a_killed_run_ends_with_the_same_bits(tmp_path: Path) -> None:
    found = kills(
        tmp_path,
        {"scenario": "before the graph", "points": 2, "offset": 20},
        {"scenario": "external data", "points": 2, "offset": 9},
    )
    assert_as_if_nothing_had_been(found)
    assert sum(kill["died"] for kill in found) == 4


def scaled(request: dict[str, Any]) -> dict[str, Any]:
    share = min(1.0, int(os.environ.get("LRCOMPRESS_KILLS", "50")) / ALL)
    fewer = {name: math.ceil(share * request.get(name, 0)) for name in ("points", "times")}
    return {**request, **fewer}


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "request_",
    [
        {"scenario": "compress", "points": 50, "times": 10},
        {"scenario": "tuned", "points": 30, "times": 5},
        {"scenario": "again smaller", "points": 25},
        {"scenario": "tune alone", "points": 20},
        {"scenario": "profile", "points": 20},
        {"scenario": "program", "points": 8},
        {"scenario": "external data", "points": 25},
        {"scenario": "compress", "points": 8, "processes": 2},
        {"scenario": "tuned", "points": 8, "processes": 2},
    ],
    ids=lambda asked: f"{asked['scenario']}, {asked.get('processes', 1)}",
)
def test_killed_anywhere_a_run_ends_with_the_same_bits(
    request_: dict[str, Any], tmp_path: Path
) -> None:
    found = kills(tmp_path, scaled(request_))
    assert_as_if_nothing_had_been(found)
    at_points = [kill for kill in found if not kill["point"].startswith("after ")]
    assert all(kill["died"] for kill in at_points), "a point was not reached"
