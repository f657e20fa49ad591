"""Ask the NVIDIA driver which CUDA it supports and which GPUs it sees."""

from __future__ import annotations

import ctypes
import sys
from dataclasses import dataclass

from lrcompress.messages import one_line

DRIVER_LIBRARY = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
_NAME_BYTES = 256


@dataclass(frozen=True)
class Driver:
    loaded: bool
    cuda_version: tuple[int, int] | None  # the newest CUDA that it supports
    gpus: tuple[str, ...]
    trouble: str = ""  # why there is no GPU, if there is none


def probe_driver(library: str = DRIVER_LIBRARY) -> Driver:
    """Load the driver's library, which comes with the driver and not with a Python package."""
    try:
        cuda = ctypes.CDLL(library)
    except OSError as error:
        return Driver(loaded=False, cuda_version=None, gpus=(), trouble=one_line(error))
    version = ctypes.c_int(0)
    cuda.cuDriverGetVersion(ctypes.byref(version))
    supported = (version.value // 1000, version.value % 1000 // 10)
    if (code := cuda.cuInit(0)) != 0:
        return Driver(True, supported, (), f"cuInit fails with code {code}")
    count = ctypes.c_int(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    names = []
    for index in range(count.value):
        device = ctypes.c_int(0)
        name = ctypes.create_string_buffer(_NAME_BYTES)
        cuda.cuDeviceGet(ctypes.byref(device), index)
        cuda.cuDeviceGetName(name, _NAME_BYTES, device)
        names.append(name.value.decode("utf-8", "replace"))
    return Driver(True, supported, tuple(names), "" if names else "the driver sees no GPU")
