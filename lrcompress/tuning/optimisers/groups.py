"""The parameters that an optimiser trains, by name, in groups with and without weight decay."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite
from typing import Any

from torch import nn

from lrcompress.errors import TuneError

Named = tuple[str, nn.Parameter]


def trainable(module: nn.Module, learning_rate: float) -> list[Named]:
    """Return the parameters that require a gradient, each once, under its first name.

    Raises:
        TuneError: there are none, or the learning rate is not a number above zero.
    """
    if not (isfinite(learning_rate) and learning_rate > 0):
        raise TuneError(f"a learning rate of {learning_rate} trains nothing; use one above zero")
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise TuneError(
            f"{type(module).__name__}: no parameter requires a gradient; call requires_grad_() on "
            "the layers to train"
        )
    return named


def groups(named: Iterable[Named], weight_decay: float, **options: Any) -> list[dict[str, Any]]:
    """Return torch parameter groups: matrices with weight decay, vectors and scalars without."""
    rows = list(named)
    matrices = [(name, p) for name, p in rows if p.dim() > 1]
    vectors = [(name, p) for name, p in rows if p.dim() <= 1]
    made = [
        {"params": matrices, "weight_decay": weight_decay, **options},
        {"params": vectors, "weight_decay": 0.0, **options},
    ]
    return [group for group in made if group["params"]]
