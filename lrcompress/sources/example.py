"""Example inputs for tracing or timing a model without data."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from lrcompress.errors import DataError
from lrcompress.network.batches import Batch
from lrcompress.network.made_up_inputs import EXAMPLES, made_up
from lrcompress.sources.forward import arguments, check_runs, vocabulary
from lrcompress.sources.loaded_model import LoadedModel

TOKENS, PADDED = 16, 5


def example_batch(model: LoadedModel) -> Batch:
    """Make two examples of random token ids (the second padded), of random pixels, or of both.

    If the configuration does not describe the inputs, those recorded in a run folder are used.

    Raises:
        DataError: neither source describes the model's inputs.
    """
    names = arguments(model.module).names
    generator = torch.Generator().manual_seed(0)
    batch: Batch = {}
    size = vocabulary(model.module)
    if size is not None and "input_ids" in names:
        shape = (EXAMPLES, TOKENS)
        batch["input_ids"] = torch.randint(size, shape, generator=generator)
        if "attention_mask" in names:
            batch["attention_mask"] = torch.ones(shape, dtype=torch.int64)
            batch["attention_mask"][1, -PADDED:] = 0
        if "token_type_ids" in names and _has_token_types(model.module):
            batch["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
    pixels = _image_shape(getattr(model.module, "config", None))
    if pixels is not None and "pixel_values" in names:
        dtype = next(p.dtype for p in model.module.parameters() if p.is_floating_point())
        batch["pixel_values"] = torch.randn(EXAMPLES, *pixels, generator=generator).to(dtype)
    where = model.reference.text
    if not batch:
        batch = made_up(model.inputs, generator)
    if not batch:
        raise DataError(
            f"{where}: its inputs are not known without data; pass --data with an example"
        )
    check_runs(model.module, [batch], f"{where}: a made-up example (pass --data with a real one)")
    return batch


def _has_token_types(module: nn.Module) -> bool:
    """Whether token types have their own embedding; GPT-2 would add ordinary tokens instead."""
    kinds = getattr(getattr(module, "config", None), "type_vocab_size", 0)
    return isinstance(kinds, int) and kinds > 1


def _image_shape(config: Any) -> tuple[int, int, int] | None:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None)
    channels = getattr(config, "num_channels", 3)
    if isinstance(size, int):
        size = (size, size)
    return (channels, *size) if isinstance(size, list | tuple) and len(size) == 2 else None
