"""MatMulNBits on the CPU: its accuracy levels 0 and 4 against float32, in one thread's CPU time.

python -m benchmarks.accuracy_level
"""

from __future__ import annotations

from time import perf_counter

import numpy as np
import onnx

from lrcompress.export.format_graphs import copies_of, input_name, layer_graph
from lrcompress.export.session import Session, open_session
from lrcompress.export.timing import clock_for, take_turns
from lrcompress.number_formats import parse_format
from lrcompress.scratch import scratch_folder

SHAPES = ((384, 384), (1536, 384), (384, 1536), (2048, 2048))
ROWS = (1, 16, 128, 1024)
FORMATS = ("int8/32", "int8/128", "int4/32", "int4/128")
LEVELS = (0, 4)
SECONDS = 4.0  # of the runs of a row of the table


def sessions(shape: tuple[int, int]) -> dict[str, Session]:
    cases = [("fp32", 0), *((kind, level) for kind in FORMATS for level in LEVELS)]
    found = {}
    with scratch_folder() as folder:
        for kind, level in cases:
            path = folder / "layer.onnx"
            formats, copies = [parse_format(kind)], copies_of(shape)
            onnx.save(layer_graph([shape], formats, copies=copies, accuracy=level), path)
            found[f"{kind}@{level}"] = open_session(path, threads=1)
    return found


def main() -> None:
    random = np.random.default_rng(0)
    for shape in SHAPES:
        opened, copies = sessions(shape), copies_of(shape)
        for rows in ROWS:
            feed = {
                input_name(copy): random.standard_normal((rows, shape[1]), np.float32)
                for copy in range(copies)
            }
            calls = [lambda s=session, f=feed: s.run(None, f) for session in opened.values()]
            start = perf_counter()
            for call in calls:
                call()
            runs = int(min(60, max(7, SECONDS / (perf_counter() - start))))
            clock = clock_for("cpu", 1)
            times = take_turns(calls, runs=runs, warmup=2, advance=lambda: None, clock=clock)
            shortest = times.min(axis=1)
            ratios = " ".join(
                f"{name} {time / shortest[0]:.2f}"
                for name, time in zip(opened, shortest, strict=True)
            )
            print(f"{shape[0]} x {shape[1]}, {rows:4} rows: {ratios}")


if __name__ == "__main__":
    main()
