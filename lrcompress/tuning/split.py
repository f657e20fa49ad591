"""Split the examples into training examples and held-out examples."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lrcompress.compression.refit import HELD_OUT_EVERY, held_out_batches
from lrcompress.errors import DataError
from lrcompress.network.batches import Batch, Batches, batch_size


@dataclass(frozen=True, eq=False)
class Split:
    train: tuple[Batch, ...]
    held_out: tuple[Batch, ...]

    @property
    def train_examples(self) -> int:
        return sum(map(batch_size, self.train))

    @property
    def held_out_examples(self) -> int:
        return sum(map(batch_size, self.held_out))


def split(batches: Batches) -> Split:
    """Hold out one batch in five, about 64 examples at most; train on the other batches.

    With too few batches, hold out one example in five instead.

    Raises:
        DataError: fewer than two examples.
    """
    examples = sum(map(batch_size, batches))
    if examples < 2:
        raise DataError(
            f"tuning needs an example to train on and one to hold out, not {examples}; give more"
        )
    held_out = held_out_batches(batches)
    if held_out:
        held = {id(batch) for batch in held_out}
        return Split(tuple(b for b in batches if id(b) not in held), tuple(held_out))
    every = min(HELD_OUT_EVERY, examples)
    train, first = [], 0
    for batch in batches:
        places = torch.arange(first, first + batch_size(batch))
        held_rows = places % every == every - 1
        train.append(_rows(batch, ~held_rows))
        held_out.append(_rows(batch, held_rows))
        first += batch_size(batch)
    return Split(
        tuple(b for b in train if batch_size(b)), tuple(b for b in held_out if batch_size(b))
    )


def _rows(batch: Batch, chosen: torch.Tensor) -> Batch:
    return {name: value[chosen] for name, value in batch.items()}


def replaced_layers(module: nn.Module, dense: nn.Module) -> tuple[str, ...]:
    """Names of the layers of `dense` that have another type in `module`.

    Only the outermost: layers inside a replaced layer are not listed.
    """
    originals = dict(dense.named_modules())
    found: list[str] = []
    for name, part in module.named_modules():
        inside = any(name.startswith(f"{outer}.") for outer in found)
        if name in originals and not inside and type(part) is not type(originals[name]):
            found.append(name)
    return tuple(found)
