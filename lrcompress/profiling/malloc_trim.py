"""Release freed memory that the C library keeps."""

from __future__ import annotations

import ctypes
import platform


def give_back_freed_memory() -> None:
    """Return memory that glibc keeps on the heap to the system.

    After a pass over the data, the heap has gaps where activations were, and later tensors may not
    fit in them. One call after the pass costs far less time than a release for each tensor.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
