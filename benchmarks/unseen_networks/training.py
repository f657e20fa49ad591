"""Training of the small networks that no package holds, until they are certain."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.unseen_networks.cache import CACHE
from lrcompress.network.batches import Batch
from sample_models.weights import save_weights

log = logging.getLogger(__name__)

Draw = Callable[[torch.Generator], tuple[Batch, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def cross_entropy(logits: Tensor, right: Tensor) -> Tensor:
    """Over the last axis; classes of -100 are ignored."""
    return nn.functional.cross_entropy(logits.flatten(0, -2), right.flatten())


def trained_weights(
    name: str,
    make: Callable[[], nn.Module],
    draw: Draw,
    *,
    steps: int,
    rate: float,
    loss: Loss = cross_entropy,
) -> Path:
    """The cached weights of `make`'s network, trained at the first call. Seeded throughout.

    `draw` makes a batch and its right answers; AdamW, one cycle of the rate, no weight decay,
    which would keep the network from certainty.
    """
    path = CACHE / f"{name}.safetensors"
    if path.exists():
        return path
    started = time.perf_counter()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = make().train()
        generator = torch.Generator().manual_seed(0)
        optimiser = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.0)
        cycle = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=steps)
        for step in range(steps):
            batch, right = draw(generator)
            value = loss(module(**batch), right)
            optimiser.zero_grad()
            value.backward()
            nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimiser.step()
            cycle.step()
            if step % 100 == 99 or step == steps - 1:
                told, elapsed = float(value.detach()), time.perf_counter() - started
                log.info("%s: step %d, loss %.5f, %.0f s", name, step + 1, told, elapsed)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_weights(module.eval(), path, torch.float32)
    return path
