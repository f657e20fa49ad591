"""Freed memory that the C library keeps."""

from __future__ import annotations

import ctypes
import platform


def give_back_freed_memory() -> None:
    """After a pass over the data the heap is full of gaps where activations were.

    glibc keeps them, and what comes next may not fit in them: the whole of them is handed to the
    system at once (to do so tensor by tensor costs far more time).
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
