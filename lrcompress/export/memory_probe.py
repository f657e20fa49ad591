"""Measure the peak memory of one ONNX model in a process that does nothing else.

`memory.peak_memory` runs this file as a script, so that this package and (on the CPU) torch are not
loaded beside ONNX Runtime. It imports only the standard library, numpy and onnxruntime, and torch
on a GPU. It takes one JSON object as its argument and writes one to stdout.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import shutil
import subprocess
import sys
from pathlib import Path


def resident_bytes(field: str) -> int | None:
    """Return `VmRSS` (current) or `VmHWM` (peak) of this process; None if it is unavailable."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    found = [line.split()[1] for line in lines if line.startswith(field + ":")]
    return int(found[0]) * 1024 if found else None


def forget_peak() -> None:
    """Reset VmHWM to the current resident memory; if that is refused, it includes the imports."""
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def device_bytes() -> int | None:
    """Return the memory in use on the first GPU, by all processes; None if it is unavailable."""
    if shutil.which("nvidia-smi") is None:
        return None
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits", "--id=0"]
    answer = subprocess.run(query, capture_output=True, text=True, check=False)
    return int(answer.stdout.split()[0]) * 2**20 if answer.stdout.split() else None


def increase(before: int | None, after: int | None) -> int | None:
    return None if before is None or after is None else after - before


def main() -> None:
    request = json.loads(sys.argv[1])
    numpy = importlib.import_module("numpy")
    provider = request["providers"][0]
    on_gpu = provider != "CPUExecutionProvider"
    if on_gpu:
        importlib.import_module("torch")  # as open_session does, for its CUDA libraries
    runtime = importlib.import_module("onnxruntime")
    if on_gpu and hasattr(runtime, "preload_dlls"):
        runtime.preload_dlls()
    feed = dict(numpy.load(request["feed"]))
    options = runtime.SessionOptions()
    options.log_severity_level = 4
    if request["threads"]:
        options.intra_op_num_threads = request["threads"]
        options.inter_op_num_threads = 1
    device_before = device_bytes() if on_gpu else None
    forget_peak()
    before = resident_bytes("VmRSS")
    session = runtime.InferenceSession(
        request["model"], options, providers=request["providers"], enable_fallback=0
    )
    if session.get_providers()[0] != provider:
        sys.exit(f"ran on {session.get_providers()[0]}")
    for _ in range(request["runs"]):
        session.run(None, feed)
    after = resident_bytes("VmHWM")
    device_after = device_bytes() if on_gpu else None
    answer = {
        "resident": increase(before, after),
        "device": increase(device_before, device_after),
    }
    sys.stdout.write("\n" + json.dumps(answer) + "\n")


if __name__ == "__main__":
    main()
