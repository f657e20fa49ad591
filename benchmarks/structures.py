"""BLAST and related structures against the published algorithm and low rank, on trained weights.

    OMP_NUM_THREADS=1 python -m benchmarks.structures [--sections plain] [--models minilm] [--quick]

Each section is a file of benchmarks/structure_sections, which explains its columns. A section that
is run replaces its earlier results; others are kept. The effect on a whole network is measured in
benchmarks/quality.py: "ours, auto" against "ours".
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks.machine import RESULTS, describe_machine, this_command
from benchmarks.structure_sections import kronecker, latency, plain, weighted
from benchmarks.structure_sections.request import Request, Row
from benchmarks.structure_sections.trained import TRAINED

RESULT = RESULTS / "structures.json"

SECTIONS: dict[str, Callable[[Request], Row]] = {
    "plain": plain.run,
    "weighted": weighted.run,
    "latency": latency.run,
    "kronecker": kronecker.run,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--models", nargs="+", choices=TRAINED, default=list(TRAINED))
    parser.add_argument("--quick", action="store_true", help="one layer a model; nothing is saved")
    parser.add_argument("--output", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(1)  # CPU seconds of two threads would include their waiting
    request = Request(tuple(options.models), options.quick)
    for name in options.sections:
        machine = describe_machine(threads=1)
        print(f"\n{name} ({machine['load before']} processes wanted a core before)", flush=True)
        started = time.perf_counter()
        found = SECTIONS[name](request)
        seconds = time.perf_counter() - started
        print(f"{name}: {seconds:.0f} s", flush=True)
        if not request.quick:
            save(options.output, name, {"machine": machine, "seconds": seconds, **found})


def save(path: Path, name: str, body: Row) -> None:
    held = json.loads(path.read_text()) if path.exists() else {"schema_version": 1}
    held[name] = {"command": this_command(), **body}
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".partial")
    temporary.write_text(json.dumps(held, indent=1) + "\n", encoding="utf-8")
    temporary.replace(path)


if __name__ == "__main__":
    main()
