"""What the optimisers share: their defaults, parameter groups and unbiased decays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import isfinite
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from lrcompress.errors import TuneError

# A row of OPTIMISERS: trains the parameters of the module that require a gradient, at the given
# learning rate. Raises TuneError if nothing is trainable or the learning rate is not above zero.
OptimiserMaker = Callable[[nn.Module, float], torch.optim.Optimizer]

BETAS = (0.9, 0.999)  # torch's default
EPS = 1e-8  # torch's default
WEIGHT_DECAY = 0.01  # torch's default for AdamW; decoupled, for matrices only

NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


def groups(
    module: nn.Module,
    learning_rate: float,
    weight_decay: float,
    first: Callable[[nn.Parameter], bool] = lambda _: True,
    options: Mapping[str, Any] = NO_OPTIONS,
    other_options: Mapping[str, Any] = NO_OPTIONS,
) -> list[dict[str, Any]]:
    """Return torch parameter groups: matrices with weight decay, vectors and scalars without.

    They hold every parameter that requires a gradient once, under its first name. The groups of the
    parameters that `first` selects come first and have `options`; the rest have `other_options`.

    Raises:
        TuneError: there are none, or the learning rate is not a number above zero.
    """
    if not (isfinite(learning_rate) and learning_rate > 0):
        raise TuneError(f"learning rate {learning_rate} is not finite and above zero; correct it")
    named = [(name, p) for name, p in module.named_parameters() if p.requires_grad]
    if not named:
        raise TuneError(
            f"{type(module).__name__}: no parameter requires a gradient; call requires_grad_() on "
            "the layers to train"
        )
    made = [
        {
            "params": [(n, p) for n, p in named if first(p) == chosen and (p.dim() > 1) == decays],
            "weight_decay": weight_decay if decays else 0.0,
            **given,
        }
        for chosen, given in ((True, options), (False, other_options))
        for decays in (True, False)
    ]
    return [group for group in made if group["params"]]


def unbiased(betas: tuple[float, float], step: float) -> tuple[float, float]:
    """Return the decays (b - b^t) / (1 - b^t) of step t = 1, 2, ..., without Adam's correction.

    Running means with them have no bias at any step: Shazeer, Stern 2018, arXiv 1804.04235,
    section 7.1.
    """
    first, second = ((beta - beta**step) / (1 - beta**step) for beta in betas)
    return first, second
