"""The whole command against single metrics, on networks that were not used in development.

    OMP_NUM_THREADS=1 python -m benchmarks.unseen [--network crnn ...] [--budget 60 ...] [--quick]

Each row is `lrcompress compress MODEL --data DATA --budget X%` in its own process. The result is
loaded again and evaluated with the network's own metric:

default         no --metric: plans are carried out, measured and revised, as for users
plain           --metric plain: truncated SVD of the weights
input-weighted  --metric input-weighted: whitened by the inputs
diagonal        --metric diagonal: columns scaled by the inputs
two-sided       --metric two-sided: the profile alone, no plan is tried

Default rows share nothing: each makes its own profile. The others use a profile given by --profile.
For two-sided it is that of `--metric two-sided`. For the other three it is that of `--metric
input-weighted`, because they collect the same data, without the network's outputs; the plans and
weights are bit-identical to those without --profile. A two-sided profile does not suit those three:
it leaves out layers that no gradient reaches, and its moments differ in rounding. `seconds` exclude
the profile, whose time is `profile_seconds`.

The claims, for the requested rows; the exit code is 1 if a claim other than (b) fails:

(a) default >= best single metric - 2 % of the dense metric, on each network and budget
(b) default above the best single metric on at least half of them
(c) default never below plain
(d) measured over predicted divergence on held-out examples is from .5 to 2, or a doubt is reported;
    only for predictions in the divergence's unit (default and two-sided), unless both are
    negligible (lrcompress.compression.doubts)
(e) no row with exit code 0, trusted, and a metric more than 10 % below the dense one

If no method can meet a budget, and the default says so, there is nothing to compare.
Results are written after every row. Existing rows are kept; --again makes them again.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.machine import RESULTS, describe_machine
from benchmarks.unseen_comparison.claims import judge
from benchmarks.unseen_comparison.outcome import code_digest
from benchmarks.unseen_comparison.results import Results
from benchmarks.unseen_comparison.row import DEFAULT, METHODS, Case, Row
from benchmarks.unseen_comparison.runs import Runs
from benchmarks.unseen_comparison.table import footing, heading, line, verdict_lines
from benchmarks.unseen_networks import NETWORKS

RESULT = RESULTS / "unseen.json"
BUDGETS, QUICK_BUDGETS = (80, 60, 50), (60,)
LARGE, LARGE_BUDGETS = ("whisper", "smollm2", "antiberty"), (80, 60)
QUICK_METHODS = (DEFAULT, "input-weighted", "two-sided")


def main() -> None:
    options = parse_options(sys.argv[1:])
    results = Results.read(options.out, describe_machine(threads=torch.get_num_threads()))
    asked = []
    for name in options.network or NETWORKS:
        cases = cases_of(name, options)
        asked += cases
        with tempfile.TemporaryDirectory(prefix="unseen-") as scratch:
            compare(cases, results, Runs(NETWORKS[name], Path(scratch)), again=options.again)
    sys.exit(conclude(results.of(asked)))


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--network", action="append", choices=NETWORKS)
    parser.add_argument("--budget", action="append", type=percent, help="60 or 60%%; repeatable")
    parser.add_argument("--method", action="append", choices=METHODS)
    parser.add_argument("--quick", action="store_true", help="one budget, three methods")
    parser.add_argument("--again", action="store_true", help="make rows anew that are there")
    parser.add_argument("--out", type=Path, default=RESULT)
    return parser.parse_args(arguments)


def percent(text: str) -> int:
    value = int(text.removesuffix("%"))
    if not 0 < value <= 100:
        raise ValueError(text)
    return value


def cases_of(name: str, options: argparse.Namespace) -> list[Case]:
    usual = LARGE_BUDGETS if name in LARGE else BUDGETS
    budgets = options.budget or (QUICK_BUDGETS if options.quick else usual)
    methods = options.method or (QUICK_METHODS if options.quick else METHODS)
    return [Case(name, budget, method) for budget in budgets for method in methods]


def compare(cases: Sequence[Case], results: Results, runs: Runs, *, again: bool = False) -> None:
    """Show the rows of one network; compute missing ones and save each at once."""
    print(heading(cases[0].network), flush=True)
    for case in cases:
        if again or case not in results.rows:
            row = runs.row(case)
            results.describe(runs.network)
            results.add(row)
        print(line(results.rows[case]), flush=True)
    print(footing(results.of(cases), results.networks[cases[0].network]), flush=True)


def conclude(rows: Sequence[Row]) -> int:
    """Print the verdicts and return the exit code."""
    print()
    verdicts = judge(rows)
    for verdict in verdicts:
        print(verdict_lines(verdict))
    code = code_digest()
    stale = sum(row.code != code for row in rows)
    if stale:
        print(
            f"{stale} of {len(rows)} rows are of another version of the code; --again renews them"
        )
    return int(any(verdict.fails for verdict in verdicts))


if __name__ == "__main__":
    main()
