"""torch.onnx's table of operators, built once: each export of a small network spends half of its
time on building it anew."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_registry() -> Iterator[None]:
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
