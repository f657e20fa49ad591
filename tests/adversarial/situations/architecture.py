"""A Hugging Face folder of some architecture, tiny and of low rank, made when asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn

from adversarial.situations.situation import low_rank_

WORDS, LENGTH, EXAMPLES = 60, 12, 64
POOLER = {"linear": "the measured output does not depend on it"}  # of an encoder
SHARED = {"Embedding": "shared by layers of other kinds"}
SEVERAL = "called with more than one tensor"
NONE = "has no matrix form"
ROW = {"Conv2d": "single row or column"}  # depthwise
PAIRS = ("not measured: logits_per_image, logits_per_text",)
COMPUTED = {"ParametrizationList": "computed"}
Inputs = Callable[[torch.Generator], dict[str, Tensor]]


@dataclass(frozen=True)
class Architecture:
    """`left`: kinds of layers with a matrix that stay, and a part of the reason."""

    model: str
    config: str
    options: Mapping[str, Any]
    inputs: Inputs
    left: Mapping[str, str] = field(default_factory=dict)
    says: tuple[str, ...] = ()
    refused: str = ""
    unchanged: int = 0  # layers that the budget may spare, counted for others that are left alone
    default: bool = False
    late: bool = False  # refused after the long work, by what writes the graph
    tolerance: float = 2e-3

    def build(self) -> nn.Module:
        torch.manual_seed(0)
        config = getattr(transformers, self.config)(**self.options)
        model = getattr(transformers, self.model)
        built: nn.Module = (
            model._from_config(config) if hasattr(model, "_from_config") else model(config)
        )
        low_rank_(built)
        if hasattr(built, "tie_weights"):
            built.tie_weights()
        return built

    def save(self, folder: Path) -> nn.Module:
        model: Any = self.build()
        model.save_pretrained(folder)
        return model  # type: ignore[no-any-return]

    def batch(self, seed: int) -> dict[str, Tensor]:
        return self.inputs(torch.Generator().manual_seed(seed))


def ids(*names: str, length: int = LENGTH, masked: bool = True) -> Inputs:
    """Random tokens, under `input_ids` unless named otherwise; the mask pads on the right."""

    def made(generator: torch.Generator) -> dict[str, Tensor]:
        found = {}
        for name in names or ("input_ids",):
            found[name] = torch.randint(5, WORDS, (EXAMPLES, length), generator=generator)
        if masked:
            lengths = torch.randint(3, length + 1, (EXAMPLES, 1), generator=generator)
            found["attention_mask"] = (torch.arange(length) < lengths).long()
        return found

    return made


def floats(name: str, *shape: int) -> Inputs:
    return lambda g: {name: torch.randn(EXAMPLES, *shape, generator=g)}


def both(*parts: Inputs) -> Inputs:
    return lambda g: {name: tensor for part in parts for name, tensor in part(g).items()}


def pixels(side: int = 16) -> Inputs:
    return floats("pixel_values", 3, side, side)


def row(
    model: str, options: Mapping[str, Any], inputs: Inputs, config: str = "", **rest: Any
) -> Architecture:
    for ending in (
        "ForCausalLM",
        "LMHeadModel",
        "ForMaskedLM",
        "ForSequenceClassification",
        "Model",
        "ForConditionalGeneration",
        "ForCTC",
        "ForImageClassification",
        "ForPreTraining",
        "ForSemanticSegmentation",
        "ForPrediction",
        "ForObjectDetection",
        "ForTokenClassification",
        "MTModel",
        "EncoderModel",
    ):
        if model.endswith(ending) and not config:
            config = model.removesuffix(ending) + ("MT" if ending == "MTModel" else "") + "Config"
    return Architecture(model, config, options, inputs, **rest)
