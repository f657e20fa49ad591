"""Peak memory of a model in ONNX Runtime, above that of an interpreter that has it imported."""

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
_RUNS = 3  # the arena has reached its size after the second


@dataclass(frozen=True)
class PeakMemory:
    resident_bytes: int | None  # None where the system does not tell (only Linux does)
    device_bytes: int | None  # on the first GPU, other processes' changes included


def peak_memory(
    path: Path, provider: ProviderName, feed: Feed, *, threads: int | None = None
) -> PeakMemory:
    """Loads the model and runs it on `feed` in a fresh process."""
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
        # -P: the folder of the script must not shadow modules such as onnx
        command = [sys.executable, "-P", str(_PROBE), json.dumps(request)]
        answer = subprocess.run(command, capture_output=True, text=True, check=False)
    if answer.returncode != 0:
        reason = (answer.stderr.strip() or "it was killed").splitlines()[-1][:200]
        raise VerifyError(f"{path}: its memory cannot be measured: {reason}; try a smaller batch")
    measured = json.loads(answer.stdout.strip().splitlines()[-1])
    return PeakMemory(measured["resident"], measured["device"])
