"""Trained weights to fit structures to: a few layers of each sample model, as matrices."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from torch import Tensor, nn

from lrcompress.layers import weight_matrix
from lrcompress.sources.models import load_model
from sample_models.weights import load_weights


def published(name: str) -> nn.Module:
    """A network of sample_models that is prepared as a Hugging Face folder."""
    with tempfile.TemporaryDirectory() as folder:
        prepared = import_module(f"sample_models.{name}").prepare(Path(folder) / name)
        return load_model(str(prepared)).module


def committed(name: str) -> nn.Module:
    module = import_module(f"sample_models.{name}.model")
    return load_weights(module.build(), Path(str(module.__file__)).parent / "model.safetensors")


# model -> (where it comes from, layers: first those of a quick run)
TRAINED: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...]]] = {
    "minilm": (
        lambda: published("minilm"),
        (
            "encoder.layer.2.attention.self.query",
            "encoder.layer.2.intermediate.dense",
            "encoder.layer.5.output.dense",
        ),
    ),
    "smollm2": (
        lambda: published("smollm2"),
        ("model.layers.15.self_attn.q_proj", "model.layers.15.self_attn.k_proj"),
    ),
    "vit": (lambda: committed("fashion_vit"), ("blocks.1.attention.query", "blocks.1.up")),
    "cnn": (lambda: committed("fashion_cnn"), ("features.4.0", "features.6.0")),
}


def trained_weights(model: str, *, quick: bool) -> dict[str, Tensor]:
    """Layer -> (m, n), in float32; a convolution's kernel reads as (out, in * kernel)."""
    load, layers = TRAINED[model]
    module = load()
    chosen = layers[:1] if quick else layers
    return {name: weight_matrix(module.get_submodule(name))[0].detach().float() for name in chosen}
