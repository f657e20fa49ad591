"""What all tests share. They never time: a busy machine fails none of them."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _one_registry_of_operators() -> Iterator[None]:
    """Build torch.onnx's table of operators once: each export of a small network spends half of its
    time on building it anew."""
    from torch.onnx._internal.exporter._registration import ONNXRegistry

    original = ONNXRegistry.from_torchlib
    built = functools.cache(original)

    def from_torchlib(**options: int) -> ONNXRegistry:
        known = built(**options)
        fresh = copy.copy(known)
        fresh.functions = {target: list(found) for target, found in known.functions.items()}
        return fresh

    ONNXRegistry.from_torchlib = staticmethod(from_torchlib)
    yield
    ONNXRegistry.from_torchlib = original


@pytest.fixture(scope="session", autouse=True)
def _no_wait_for_the_disk() -> Iterator[None]:
    """A run flushes each of its files to the disk, for a machine that loses its power; no test cuts
    it, and the waits are a good part of a small run's time."""
    original = os.fsync
    os.fsync = lambda descriptor: None
    yield
    os.fsync = original
