"""How the process returns memory to the system."""

from __future__ import annotations

import ctypes
import platform

MMAP_THRESHOLD, TRIM_THRESHOLD = -3, -1  # of glibc's mallopt


def give_back_freed_memory() -> None:
    """Let glibc map each large tensor on its own, so that freeing it frees it.

    By itself it raises the size from which it does so to 32 MB as a program runs, and keeps the
    gaps that smaller tensors leave: profiling SmolLM2-135M peaked .8 GB higher, and held 2 GB of
    gaps afterwards (benchmarks/results/cost.json has the peak).
    """
    if platform.libc_ver()[0] != "glibc":
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(MMAP_THRESHOLD, 2**20)
    libc.mallopt(TRIM_THRESHOLD, 2**28)  # else each small tensor on top would be given back too
