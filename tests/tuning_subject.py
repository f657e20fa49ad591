"""A network that tuning can help, `tuning_subject:build`, and its data, `...:batches`."""

from __future__ import annotations

import torch
from networks import feature_batches
from small_network import WIDTH, SmallNetwork
from torch import nn

from lrcompress.network.batches import Batch


def build() -> nn.Module:
    """Class scores that tell the classes apart."""
    network = SmallNetwork()
    with torch.no_grad():
        network.head.weight *= 5
    return network


def batches() -> list[Batch]:
    """Enough examples for what is learnt to hold on others."""
    return [{"x": 2 * batch["x"]} for batch in feature_batches(12, 64, WIDTH)]
