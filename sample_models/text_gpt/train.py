"""The recipe behind model.safetensors:  python -m sample_models.text_gpt.train [DEST]

One thread, bfloat16 products where the processor has them, float32 weights and optimiser.
"""

from __future__ import annotations

import math
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from sample_models.text_gpt.data import evaluate, training_bytes
from sample_models.text_gpt.model import CONTEXT, VOCABULARY, build
from sample_models.weights import save_weights

SEED = 0
STEPS = 2800
WARMUP = 120
BATCH = 16
LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.1
REPORT_EVERY = 250


def learning_rate(step: int) -> float:
    """Linear warm-up, then a cosine to a twentieth of the peak."""
    if step < WARMUP:
        return LEARNING_RATE * (step + 1) / WARMUP
    turn = math.pi * (step - WARMUP) / (STEPS - WARMUP)
    return LEARNING_RATE * (0.05 + 0.95 * (1 + math.cos(turn)) / 2)


def main(destination: Path) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    model, text = build(), training_bytes()
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    groups: list[dict[str, Any]] = [
        {"params": matrices, "weight_decay": WEIGHT_DECAY},
        {"params": vectors, "weight_decay": 0.0},
    ]
    optimiser = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95))
    window = torch.arange(CONTEXT + 1)
    started = time.perf_counter()
    for step in range(STEPS):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        starts = torch.randint(len(text) - CONTEXT, (BATCH, 1), generator=generator)
        rows = text[starts + window].long()  # (B, CONTEXT + 1)
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(rows[:, :-1])
        loss = functional.cross_entropy(
            logits.float().reshape(-1, VOCABULARY), rows[:, 1:].reshape(-1)
        )
        optimiser.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        if (step + 1) % REPORT_EVERY == 0:
            seconds = time.perf_counter() - started
            sys.stdout.write(f"step {step + 1}  loss {loss.item():.3f}  {seconds:.0f} s\n")
            sys.stdout.flush()
    save_weights(model, destination, torch.float16)
    sys.stdout.write(f"{evaluate(model)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("model.safetensors")))
