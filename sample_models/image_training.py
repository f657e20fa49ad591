"""The one training loop behind both image models: AdamW, a cosine, flips and small shifts."""

from __future__ import annotations

import math
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sample_models.fashion_mnist import evaluate, training_set
from sample_models.weights import save_weights


@dataclass(frozen=True)
class Recipe:
    """What a run depends on; one thread, so the same numbers on the same machine."""

    epochs: int
    batch: int
    learning_rate: float
    weight_decay: float
    warmup_steps: int
    label_smoothing: float
    bfloat16: bool  # products only; weights and optimiser stay float32
    seed: int


def train(model: nn.Module, recipe: Recipe, destination: Path) -> None:
    """Train on the 60,000 images, write float32 weights, and print the test score."""
    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(recipe.seed)
    images, labels = training_set()
    # Twice as fast for bfloat16 convolutions on a CPU, and nothing else changes.
    images = images.to(memory_format=torch.channels_last)
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    groups: list[dict[str, Any]] = [
        {
            "params": [p for p in model.parameters() if p.ndim > 1],
            "weight_decay": recipe.weight_decay,
        },
        {"params": [p for p in model.parameters() if p.ndim <= 1], "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=recipe.learning_rate)
    criterion = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    steps = recipe.epochs * (len(images) // recipe.batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: _warm_cosine(step, recipe.warmup_steps, steps)
    )
    started = time.perf_counter()
    for epoch in range(recipe.epochs):
        model.train()
        order = torch.randperm(len(images), generator=generator)
        for rows in torch.split(order[: len(order) // recipe.batch * recipe.batch], recipe.batch):
            with torch.autocast("cpu", torch.bfloat16, enabled=recipe.bfloat16):
                logits = model(pixel_values=_augmented(images[rows], generator))
            loss = criterion(logits.float(), labels[rows])
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            schedule.step()
        seconds = time.perf_counter() - started
        sys.stdout.write(f"epoch {epoch + 1}  {evaluate(model)}  {seconds:.0f} s\n")
        sys.stdout.flush()
    save_weights(model, destination, torch.float32)


def _warm_cosine(step: int, warmup: int, steps: int) -> float:
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup))) / 2


def _augmented(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Half the images mirrored; the whole batch shifted by up to two pixels each way."""
    mirrored = torch.rand(len(images), 1, 1, 1, generator=generator) < 0.5
    images = torch.where(mirrored, images.flip(-1), images)
    down, right = (torch.randint(-2, 3, (2,), generator=generator)).tolist()
    return torch.roll(images, (down, right), (-2, -1))  # the margins are black: rolling is shifting
