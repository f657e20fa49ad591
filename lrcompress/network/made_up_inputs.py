"""Made-up inputs with the names, dtypes and shapes of real ones, the same on every machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from lrcompress.errors import LrcompressError
from lrcompress.messages import label
from lrcompress.network.batches import Batch

EXAMPLES = 2
DTYPES = (
    "float32", "float16", "bfloat16", "float64",
    "int64", "int32", "int16", "int8", "uint8", "bool",
)  # fmt: skip
MOST_VALUES = 2**30  # in one example; a record with more was edited


@dataclass(frozen=True)
class InputRecord:
    """The dtype, shape and largest integer of a model's input; enough to make up another one."""

    dtype: str  # torch's name for it
    shape: tuple[int, ...]  # of one example
    largest: int = 0  # largest value of an integer input


def record_inputs(batch: Batch) -> dict[str, InputRecord]:
    """Return the records that `made_up` needs; of the batch's values they hold only the largest."""
    return {
        name: InputRecord(
            str(tensor.dtype).removeprefix("torch."),
            tuple(tensor.shape[1:]),
            0 if tensor.is_floating_point() else max(0, int(tensor.max())),
        )
        for name, tensor in batch.items()
    }


def check_inputs(
    inputs: Mapping[str, InputRecord], where: str, error: type[LrcompressError]
) -> None:
    """Raise `error`, naming the input, for a record that cannot come from a real input."""
    for name, seen in inputs.items():
        sizes = seen.dtype in DTYPES and min(seen.shape, default=1) >= 1 and seen.largest >= 0
        if not sizes or len(seen.shape) > 16 or prod(seen.shape) > MOST_VALUES:
            raise error(f"{where}.{label(name)} is not a valid input; make the file again")


def made_up(inputs: Mapping[str, InputRecord], generator: torch.Generator) -> Batch:
    """Return a batch of normal values, integers up to the largest seen, or all ones for a mask."""
    return {name: _one(seen, generator) for name, seen in inputs.items()}


def _one(seen: InputRecord, generator: torch.Generator) -> Tensor:
    shape, dtype = (EXAMPLES, *seen.shape), getattr(torch, seen.dtype)
    if dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(dtype)
    if seen.largest <= 1:
        return torch.full(shape, seen.largest, dtype=dtype)
    return torch.randint(seen.largest + 1, shape, generator=generator).to(dtype)
