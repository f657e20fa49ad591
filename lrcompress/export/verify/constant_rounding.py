"""What the rounding of a graph's own constants may do to its outputs.

In half precision a graph holds the weights of the network, rounded as the network's own are, and a
few constants that the exporter computed: a scale, a table of angles, a kernel with a norm folded
in. Only those are rounded otherwise than the network's. With each of them off by its rounding, the
graph says by itself how far from its network it may be; where there is none, not at all.
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

# Values that were meant, not rounded: 1 - mask, x / 2. Of bfloat16's every 16th value is a whole
# number or a half by chance, so that no others can be told from those that were computed
_MEANT = (0.0, 0.25, 0.5, 1.0, 2.0, 3.0, 4.0)


def computed_constants(subject: Subject, module: nn.Module) -> tuple[Stored, ...]:
    """The floating-point constants that are none of the network's tensors to the bit.

    module: the network with its weights rounded to the precision of the graph.
    """
    tensors = (*module.named_parameters(), *module.named_buffers())
    targets = [Target(name, t.detach(), roundings=0) for name, t in tensors if t.numel()]
    stored = stored_constants(subject.graph, subject.path.parent)
    return Constants(stored, subject.precision, {}).unlike(targets)


def off_by_rounding(
    constants: tuple[Stored, ...], generator: np.random.Generator
) -> Mapping[str, NDArray[Any]]:
    """The constants by name, each value up or down by what rounding may have done to it."""
    return {one.name: _off(one, generator) for one in constants}


def _off(one: Stored, generator: np.random.Generator) -> NDArray[Any]:
    values = one.tensor.numpy().astype(np.float64)
    rounding = ROUNDING[precision_of_dtype(one.dtype)]
    kept = np.isin(np.abs(values), _MEANT) | ~np.isfinite(values)
    signs = generator.choice([-1.0, 1.0], values.shape)
    off: NDArray[Any] = np.where(kept, values, values * (1 + rounding * signs))
    one.release()
    return off
