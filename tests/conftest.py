"""What all tests share. They never time: a busy machine fails none of them."""

from __future__ import annotations

import copy
import functools
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
