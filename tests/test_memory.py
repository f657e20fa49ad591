"""Claims of memory: what is freed goes back to the system."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

# Frees nine of ten blocks of 2 MB; the tenth pins the heap where blocks lie in it. The first
# round teaches glibc, left to itself, to put blocks of that size into the heap.
_SCRIPT = """
import sys
from lrcompress_cli.memory import give_back_freed_memory

def resident_mb():
    lines = open("/proc/self/status").read().splitlines()
    return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) / 1024

if sys.argv[1] == "given back":
    give_back_freed_memory()
before = resident_mb()
for _ in range(2):
    blocks = [bytearray(b"1") * 2**21 for _ in range(200)]
    blocks = blocks[9::10]
print(resident_mb() - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_freed_tensors_do_not_stay_in_the_process() -> None:
    def left_mb(how: str) -> float:
        command = [sys.executable, "-c", _SCRIPT, how]
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
        return float(answer.stdout)

    assert left_mb("given back") < 60  # 40 MB are still in use
    assert left_mb("kept") > 200  # else the setting is of no use any more
