"""Run what is missing, and show all of it; see benchmarks/bits/__init__.py."""

from __future__ import annotations

import argparse
import logging
import sys
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path

import torch

from benchmarks.bits.baselines import BASELINES, QUICK, Baseline
from benchmarks.bits.must_reach import verdicts
from benchmarks.bits.networks import QUICK as QUICK_NETWORKS
from benchmarks.bits.networks import SUBJECTS
from benchmarks.bits.ours import VARIANTS
from benchmarks.bits.picture import draw
from benchmarks.bits.results import Results
from benchmarks.bits.runs import Runs
from benchmarks.bits.table import show, show_verdicts
from benchmarks.machine import RESULTS, describe_machine
from benchmarks.unseen_networks.cache import CACHE

RESULT = RESULTS / "bits.json"
PICTURE = Path(__file__).parents[2] / "docs" / "bits.svg"


def main() -> None:
    options = parse_options(sys.argv[1:])
    logging.disable(logging.WARNING)  # the quantisers write a line for every node
    results = Results.read(options.out, describe_machine(threads=torch.get_num_threads()))
    for name in options.networks:
        runs = Runs(SUBJECTS[name], name, options.cache / name, results)
        for method in asked(BASELINES, options.methods):
            if Baseline(method).is_for(name):
                runs.baseline(method, again=options.again)
        for method in asked(VARIANTS, options.methods):
            if VARIANTS[method].is_for(name) and not options.quick:
                runs.variant(VARIANTS[method], again=options.again)
        if options.latency:
            runs.latencies(options.methods, again=options.again)
        if name in results.networks:
            show(name, results)
    found = verdicts(results)
    show_verdicts(found)
    if options.out == RESULT:
        PICTURE.write_text(draw(results), encoding="utf-8")
    sys.exit(int(any(verdict.reached is False for verdict in found)))


def parse_options(arguments: Sequence[str]) -> argparse.Namespace:
    assert __doc__ is not None
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--networks", nargs="+", choices=SUBJECTS)
    parser.add_argument("--methods", nargs="+", help="patterns: 'gptq*', ours")
    parser.add_argument("--quick", action="store_true", help="two networks, a few baselines")
    parser.add_argument("--again", action="store_true", help="make cells anew that are there")
    parser.add_argument("--no-latency", dest="latency", action="store_false")
    parser.add_argument("--cache", type=Path, default=CACHE.parent / "bits", help="for the files")
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args(arguments)
    options.networks = options.networks or (QUICK_NETWORKS if options.quick else tuple(SUBJECTS))
    options.methods = options.methods or (QUICK if options.quick else ("*",))
    return options


def asked(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatch(name, pattern) for pattern in patterns)]


if __name__ == "__main__":
    main()
