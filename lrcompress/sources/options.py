"""Options for the number, length and batch size of examples."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from lrcompress.errors import DataError

Item = TypeVar("Item")

BATCH_TOKENS = 1024
EXAMPLES = 16


@dataclass(frozen=True)
class DataOptions:
    """`max_length` counts tokens per example; `max_examples` None takes all.

    `batch_size` counts examples. If it is None, a batch has EXAMPLES examples; a batch of texts
    has as many as fit in BATCH_TOKENS tokens with padding. This keeps the overhead per pass low
    and fits in memory.
    """

    batch_size: int | None = None
    max_length: int = 128
    max_examples: int | None = None
    seed: int = 0  # seed for drawing max_examples

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_length", "max_examples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"{name} is {value}; it must be 1 or more")

    @property
    def examples(self) -> int:
        """Number of examples in a batch if all are of one size."""
        return self.batch_size or EXAMPLES

    def draw(self, items: Iterable[Item]) -> list[Item]:
        """Draw at most `max_examples` of the items uniformly, keeping their order.

        Files are often sorted, so their first items are not representative. One pass; only the
        drawn items are held (Vitter 1985, algorithm R).
        """
        if self.max_examples is None:
            return list(items)
        generator = random.Random(self.seed)
        drawn: list[tuple[int, Item]] = []
        for i, item in enumerate(items):
            if i < self.max_examples:
                drawn.append((i, item))
            elif (place := generator.randrange(i + 1)) < self.max_examples:
                drawn[place] = (i, item)
        return [item for _, item in sorted(drawn, key=lambda pair: pair[0])]
