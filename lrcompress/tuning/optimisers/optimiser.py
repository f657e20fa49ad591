"""The type of the rows of OPTIMISERS: a function of a module and a learning rate."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

OptimiserMaker = Callable[[nn.Module, float], torch.optim.Optimizer]
"""Trains the parameters of the module that require a gradient, at the given learning rate."""

BETAS = (0.9, 0.999)  # torch's default
EPS = 1e-8  # torch's default
WEIGHT_DECAY = 0.01  # torch's default for AdamW; decoupled, for matrices only
