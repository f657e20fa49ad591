"""The pairs of factors in a network: W = L R^T = (L M) (R M^-T)^T for any invertible M.

How each module stores its pairs is in `factor_layouts`. These do not form pairs:

- factors of which one is frozen: the other is then an ordinary parameter;
- a factor that several products share: a change of basis of one would change the others;
- a factor beside an identity (interpolative), and dense blocks.
"""

from __future__ import annotations

from collections import Counter

from torch import nn

from lrcompress.tuning.optimisers.factor_layouts import read_pairs
from lrcompress.tuning.optimisers.factors import FactorPair


def factor_pairs(module: nn.Module) -> list[FactorPair]:
    """Return all pairs of trainable factors in `module`, in module order, each once."""
    found: dict[tuple[int, int], FactorPair] = {}
    for child in module.modules():
        for pair in read_pairs(child):
            left, right = pair.parameters
            found.setdefault((id(left), id(right)), pair)
    uses = Counter(key for keys in found for key in keys)
    return [
        pair
        for keys, pair in found.items()
        if all(uses[key] == 1 for key in keys) and all(p.requires_grad for p in pair.parameters)
    ]
