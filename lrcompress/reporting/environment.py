"""What the figures were made with. Versions come from metadata, so nothing is imported."""

from __future__ import annotations

import os
import platform
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
    """Label → value, in the order in which a reader wants them."""
    found = {
        "device": device,
        "provider": provider,
        "processor": processor_name(),
        "cores": str(os.cpu_count()),
        "threads": str(threads),
        "system": f"{platform.system()} {platform.machine()}",
        "Python": platform.python_version(),
    }
    return found | installed_versions()


def installed_versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
