"""Perturb the constants that an exporter computed, to bound the effect of their rounding.

In half precision a graph holds the network's weights, rounded like those of the reference, and a
few constants that the exporter computed: a scale, a table of angles, a kernel with a norm folded
into it. Only these are rounded differently from the reference. Perturbing each by its rounding
gives the error that the graph may have. Without such constants it may have none.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from lrcompress.export.verify.result import Subject
from lrcompress.export.verify.tensor_matching import ROUNDING, Constants, Target, precision_of_dtype
from lrcompress.graph.stored_constants import Stored, stored_constants

# Exact values, not rounded ones: 1 - mask, x / 2. Other exact values cannot be recognised, because
# every 16th value of bfloat16 is an integer or a half by chance
_MEANT = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0)


def computed_constants(subject: Subject, module: nn.Module) -> tuple[Stored, ...]:
    """Return the floating-point constants that equal none of the network's tensors.

    module: the network with its weights rounded to the graph's precision.
    """
    tensors = (*module.named_parameters(), *module.named_buffers())
    targets = [Target(name, t.detach(), roundings=0) for name, t in tensors if t.numel()]
    stored = stored_constants(subject.graph, subject.path.parent)
    return Constants(stored, subject.precision, {}).unlike(targets)


def off_by_rounding(
    constants: tuple[Stored, ...], generator: np.random.Generator
) -> Mapping[str, NDArray[Any]]:
    """Return the constants by name, with each value moved up or down by its possible rounding."""
    return {one.name: _off(one, generator) for one in constants}


def _off(one: Stored, generator: np.random.Generator) -> NDArray[Any]:
    values = one.tensor.numpy().astype(np.float64)
    rounding = ROUNDING[precision_of_dtype(one.dtype)]
    kept = np.isin(np.abs(values), _MEANT) | ~np.isfinite(values)
    signs = generator.choice([-1.0, 1.0], values.shape)
    off: NDArray[Any] = np.where(kept, values, values * (1 + rounding * signs))
    one.release()
    return off
