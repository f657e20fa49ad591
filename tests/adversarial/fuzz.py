"""Fuzz the commands: `python -m adversarial.fuzz --inputs 10000`, in the folder `tests`.

An input is one file of a model, data set, run or graph, damaged in a way that its format's name and
a seed determine, or one option's text. Whatever it is, the command ends with a documented exit
code, in 30 seconds and 4 GB, with one line of error that names the file, without a traceback or a
control character; where it ends well, the run is verified.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path

from adversarial.fuzzing.formats import FORMATS
from adversarial.fuzzing.materials import make
from adversarial.fuzzing.runner import inputs, run_all, run_one, warm_up


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--only", help="one format, by a part of its name")
    parser.add_argument("--one", nargs=2, metavar=("FORMAT", "SEED"), help="one input, in here")
    parser.add_argument("--materials", type=Path, help="folder to keep the whole inputs in")
    parser.add_argument("--log", type=Path, help="file for the results, one JSON object a line")
    given = parser.parse_args()
    materials = given.materials or Path(tempfile.mkdtemp(prefix="materials"))
    if not (materials / "data" / "table.json").is_file():
        make(materials)
    warm_up(materials)
    if given.one:
        sys.stdout.write(f"{run_one(given.one[0], int(given.one[1]), materials)}\n")
        return 0
    chosen = list(inputs(given.first, given.inputs))
    if given.only:
        names = [name for name in FORMATS if given.only in name]
        chosen = [
            (names[i % len(names)], i) for i in range(given.first, given.first + given.inputs)
        ]
    codes: dict[str, Counter[int]] = defaultdict(Counter)
    faults = 0
    log = given.log.open("a") if given.log else None
    slowest, largest = 0.0, 0
    for result in run_all(chosen, materials):
        codes[result.format][result.code] += 1
        slowest, largest = max(slowest, result.seconds), max(largest, result.megabytes)
        if log is not None:
            log.write(json.dumps(asdict(result)) + "\n")
            log.flush()
        if result.fault:
            faults += 1
            sys.stdout.write(f"{result.format} {result.seed}: {result.fault}: {result.error}\n")
            sys.stdout.flush()
    for name, counted in codes.items():
        told = ", ".join(f"{number} x exit {code}" for code, number in sorted(counted.items()))
        sys.stdout.write(f"{name}: {sum(counted.values())} ({told})\n")
    total = sum(sum(counted.values()) for counted in codes.values())
    sys.stdout.write(
        f"{total} inputs, {faults} faults; slowest {slowest} s, largest {largest} MB\n"
    )
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
