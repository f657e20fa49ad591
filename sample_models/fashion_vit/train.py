"""The recipe behind model.safetensors:  python -m sample_models.fashion_vit.train [DEST]"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

from sample_models.fashion_vit.model import build
from sample_models.image_training import Recipe, train

RECIPE = Recipe(
    epochs=16,
    batch=128,
    learning_rate=1.5e-3,
    weight_decay=0.05,
    warmup_steps=300,
    label_smoothing=0.05,
    bfloat16=False,  # slower than float32 at this width
    seed=0,
)


def main(destination: Path) -> None:
    torch.manual_seed(RECIPE.seed)
    train(build(), RECIPE, destination)


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).with_name("model.safetensors")))
