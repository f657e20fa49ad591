"""Inputs to trace or time a model with where there is no data."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lrcompress.errors import DataError
from lrcompress.profiling.batches import Batch
from lrcompress.sources.forward import arguments, check_runs, vocabulary
from lrcompress.sources.reference import InputRecord, LoadedModel

EXAMPLES, TOKENS, PADDED = 2, 16, 5


def example_batch(model: LoadedModel) -> Batch:
    """Two examples of random token ids, the second padded, or of random pixels, or both.

    A run folder says what its model was given, where the configuration does not.

    Raises:
        DataError: nothing says what the model takes.
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
        batch = {name: _made_up(seen, generator) for name, seen in model.inputs.items()}
    if not batch:
        raise DataError(
            f"{where}: its inputs are not known without data; pass --data with an example"
        )
    check_runs(model.module, [batch], f"{where}: a made-up example (pass --data with a real one)")
    return batch


def record_inputs(batch: Batch) -> dict[str, InputRecord]:
    """What a later `example_batch` needs of a batch; none of its values but the largest."""
    return {
        name: InputRecord(
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape[1:]),
            0 if tensor.is_floating_point() else max(0, int(tensor.max())),
        )
        for name, tensor in batch.items()
    }


def _made_up(seen: InputRecord, generator: torch.Generator) -> Tensor:
    """Normal values, whole numbers up to the largest seen, or nothing but ones of a mask."""
    shape, dtype = (EXAMPLES, *seen.shape), getattr(torch, seen.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if seen.largest <= 1:
        return torch.full(shape, seen.largest, dtype=dtype)
    return torch.randint(seen.largest + 1, shape, generator=generator).to(dtype)


def _has_token_types(module: nn.Module) -> bool:
    """Whether the ids have a table of their own; GPT-2 would add ordinary tokens instead."""
    kinds = getattr(getattr(module, "config", None), "type_vocab_size", 0)
    return isinstance(kinds, int) and kinds > 1


def _image_shape(config: Any) -> tuple[int, int, int] | None:
    config = getattr(config, "vision_config", config)
    size = getattr(config, "image_size", None)
    channels = getattr(config, "num_channels", 3)
    if isinstance(size, int):
        return channels, size, size
    if isinstance(size, list | tuple) and len(size) == 2:
        return channels, size[0], size[1]
    return None
