"""The environment of a run. Versions come from metadata, so nothing is imported."""

from __future__ import annotations

import os
import platform
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version

from lrcompress.hardware import processor_name

PACKAGES = (
    "lrcompress",
    "torch",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "onnxruntime-gpu",
    "transformers",
)


def describe_environment(*, device: str, provider: str, threads: int) -> dict[str, str]:
    """Return label → value, in display order."""
    found = {
        "device": device,
        "provider": provider,
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
        "threads": str(threads),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            found[name] = version(name)
    return found
