"""Peak memory of a model in ONNX Runtime, above that of an interpreter that has imported it."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lrcompress.errors import VerifyError
from lrcompress.export.random_feeds import Feed
from lrcompress.export.session import EXECUTION_PROVIDERS, ProviderName
from lrcompress.scratch import scratch_folder

_PROBE = Path(__file__).with_name("memory_probe.py")
_RUNS = 3  # the arena reaches its final size in the second run


@dataclass(frozen=True)
class PeakMemory:
    resident_bytes: int | None  # None if the system does not report it (only Linux does)
    device_bytes: int | None  # on the first GPU, including changes by other processes


def peak_memory(
    path: Path, provider: ProviderName, feed: Feed, *, threads: int | None = None
) -> PeakMemory:
    """Measure the memory of loading the model and running it on `feed`, in a new process.

    Raises:
        VerifyError: the process fails.
    """
    with scratch_folder() as folder:
        stored = folder / "feed.npz"
        np.savez(stored, allow_pickle=False, **feed)
        request = {
            "model": str(path),
            "feed": str(stored),
            "providers": list(EXECUTION_PROVIDERS[provider]),
            "threads": threads,
            "runs": _RUNS,
        }
        # -P: files in the script's folder must not shadow modules such as onnx
        command = [sys.executable, "-P", str(_PROBE), json.dumps(request)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip() or "it was killed").splitlines()[-1][:200]
        raise VerifyError(f"{path}: its memory cannot be measured: {reason}; try a smaller batch")
    measured = json.loads(answer.stdout.strip().splitlines()[-1])
    return PeakMemory(measured["resident"], measured["device"])
